"""Decoding in a worker process: a clip is read from a shared file, and its frames go through shared memory."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from caption_assets.video.decode import CatchingUp, ClipDecoder
from caption_assets.video.preview import Preview, make_preview
from caption_assets.workers.job_queue import KEPT
from caption_assets.workers.shared_memory import BufferHandle

_open_clips: OrderedDict[BufferHandle, ClipDecoder] = OrderedDict()
"""This worker's clips, each where its last window left it."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What is said of the frames beside their pixels; see ``Frames``."""

    indices: tuple[int, ...]
    fps: float
    replaced: int
    padded: int
    preview: Preview | None
    """If one was wanted."""
    is_sequential: bool
    """Whether the clip's next window costs much less in this worker, for want of keyframes."""


@dataclass(frozen=True, slots=True)
class Underway:
    """The time was over before the window was reached. The same call goes on from there."""

    position: int
    """Number of the packet that was reached."""


def decode_shared(
    clip: BufferHandle,
    pixels: BufferHandle,
    start: int,
    end: int,
    count: int,
    size: tuple[int, int],
    *,
    patience: float,
    with_preview: bool = False,
) -> Shown | Underway:
    """Decode a window as ``ClipDecoder.frames`` does, from a shared file into a buffer.

    The clip stays open for its other windows.

    Args:
        clip: holds the clip's bytes and nothing else.
        pixels: gets the frames, uint8 of shape (count, height, width, 3).
        start: as for ``ClipDecoder.frames``.
        end: as for ``ClipDecoder.frames``.
        count: as for ``ClipDecoder.frames``.
        size: as for ``ClipDecoder.frames``.
        patience: seconds after which to stop if the window is not reached.
        with_preview: whether to make a preview of the frames as well.

    Raises:
        UnreadableClip: if the clip, or too many of the wanted frames, cannot be decoded.
    """
    import torch

    torch.set_num_threads(1)  # a resize spread over threads takes twice the CPU time; workers side by side do not
    pause_at = time.monotonic() + patience
    decoder = _opened(clip)
    try:
        frames = decoder.frames(start, end, count, size, pause_at=pause_at)
    except CatchingUp:
        return Underway(decoder.position)
    except Exception:
        _open_clips.pop(clip).close()
        raise
    with pixels.map() as memory:
        np.frombuffer(memory, np.uint8).reshape(frames.pixels.shape)[:] = frames.pixels
    preview = make_preview(frames.pixels, frames.fps) if with_preview else None
    return Shown(frames.indices, frames.fps, frames.replaced, frames.padded, preview, decoder.is_sequential)


def _opened(clip: BufferHandle) -> ClipDecoder:
    if clip not in _open_clips:
        while len(_open_clips) >= KEPT:
            _open_clips.popitem(last=False)[1].close()
        _open_clips[clip] = ClipDecoder(clip.open)
    _open_clips.move_to_end(clip)
    return _open_clips[clip]
