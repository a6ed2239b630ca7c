"""Decoding in a worker process: the clip is read from a shared file, and its frames are written to shared memory."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from caption_assets.store.previews import Preview
from caption_assets.video.decode import ClipDecoder, PauseReached
from caption_assets.video.preview import make_preview
from caption_assets.workers.job_queue import MAX_OPEN_CLIPS
from caption_assets.workers.shared_memory import BufferHandle

_open_clips: OrderedDict[BufferHandle, ClipDecoder] = OrderedDict()
"""This worker's open decoders, least recently used first."""


@dataclass(frozen=True, slots=True)
class DecodedWindow:
    """The metadata of decoded frames; see ``Frames``. The pixels are in shared memory."""

    indices: tuple[int, ...]
    fps: float
    replaced: int
    padded: int
    preview: Preview | None
    """None unless requested, and if it cannot be made."""
    is_sequential: bool
    """See ``ClipDecoder.is_sequential``: if true, the clip's next window is much cheaper in this worker."""


@dataclass(frozen=True, slots=True)
class DecodePaused:
    """The result if the time limit passed before the window was reached. Repeat the call to continue."""

    position: int
    """Number of packets read so far."""


def load_decoder() -> None:
    """Do nothing: a worker that gets this job imports this module, and thus what ``decode_shared`` needs."""


def decode_shared(
    clip: BufferHandle,
    pixels: BufferHandle,
    start: int,
    end: int,
    count: int,
    size: tuple[int, int],
    *,
    pause_after: float,
    with_preview: bool = False,
) -> DecodedWindow | DecodePaused:
    """Decode a window as ``ClipDecoder.frames`` does, from a shared file into a buffer.

    The clip stays open for its other windows.

    Args:
        clip: file with the clip's bytes.
        pixels: buffer for the frames, uint8 of shape (count, height, width, 3).
        start: see ``ClipDecoder.frames``.
        end: see ``ClipDecoder.frames``.
        count: see ``ClipDecoder.frames``.
        size: see ``ClipDecoder.frames``.
        pause_after: seconds after which to stop if the window is not reached.
        with_preview: whether to make a preview of the frames as well.

    Raises:
        UnreadableClip: if the clip, or too many of the wanted frames, cannot be decoded.
    """
    pause_at = time.monotonic() + pause_after
    decoder = _open_decoder(clip)
    try:
        frames = decoder.frames(start, end, count, size, pause_at=pause_at)
    except PauseReached:
        return DecodePaused(decoder.position)
    except Exception:
        _open_clips.pop(clip).close()
        raise
    pixels.write(frames.pixels)
    preview = _try_preview(frames.pixels) if with_preview else None
    return DecodedWindow(frames.indices, frames.fps, frames.replaced, frames.padded, preview, decoder.is_sequential)


def _try_preview(pixels: NDArray[np.uint8]) -> Preview | None:
    """A preview; None if it cannot be made, because captions do not depend on it."""
    try:
        return make_preview(pixels)
    except Exception:
        return None


def _open_decoder(clip: BufferHandle) -> ClipDecoder:
    if clip not in _open_clips:
        while len(_open_clips) >= MAX_OPEN_CLIPS:
            _open_clips.popitem(last=False)[1].close()
        _open_clips[clip] = ClipDecoder(clip.open)
    _open_clips.move_to_end(clip)
    return _open_clips[clip]
