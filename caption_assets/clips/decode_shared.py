"""Decoding in a worker process: a clip's bytes come, and its frames go, through shared memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from caption_assets.clips.buffer import BufferHandle
from caption_assets.clips.decode import decode
from caption_assets.clips.preview import Preview, make_preview


@dataclass(frozen=True, slots=True)
class Shown:
    """What is said of the frames beside their pixels; see ``Frames``."""

    indices: tuple[int, ...]
    fps: float
    replaced: int
    padded: int
    preview: Preview | None
    """If one was wanted."""


def decode_shared(
    clip: BufferHandle,
    pixels: BufferHandle,
    start: int,
    end: int,
    count: int,
    size: tuple[int, int],
    *,
    with_preview: bool = False,
) -> Shown:
    """Decode a window as ``decode`` does, from one buffer into another.

    Args:
        clip: holds the clip's bytes and nothing else.
        pixels: gets the frames, uint8 of shape (count, height, width, 3).
        start: as for ``decode``.
        end: as for ``decode``.
        count: as for ``decode``.
        size: as for ``decode``.
        with_preview: whether to make a preview of the frames as well.

    Raises:
        UnreadableClip: if the clip, or one of the wanted frames, cannot be decoded.
    """
    import torch

    torch.set_num_threads(1)  # a resize spread over threads takes twice the CPU time; workers side by side do not
    with clip.map() as memory:
        data = memory.read()
    frames = decode(data, start, end, count, size)
    with pixels.map() as memory:
        np.frombuffer(memory, np.uint8).reshape(frames.pixels.shape)[:] = frames.pixels
    preview = make_preview(frames.pixels, frames.fps) if with_preview else None
    return Shown(frames.indices, frames.fps, frames.replaced, frames.padded, preview)
