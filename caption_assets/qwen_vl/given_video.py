"""A video as callers give it: the shape, values and frame rate of its array or tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caption_assets.captioning.budget import FrameGrid
from caption_assets.video.decode import Frames
from caption_assets.video.frame_sampling import frames_shown_at, sample_times
from caption_assets.video.scaler import resize

DEFAULT_FPS = 2.0
"""The reference's frame rate, used for frames without their own."""


@dataclass(frozen=True, slots=True)
class GivenVideo:
    """A video of a caller. Its values are converted by ``frames``."""

    pixels: Any
    """Array or tensor."""
    shape: FrameGrid
    """Number and size of the frames. An odd last frame counts twice."""
    frame_rate: float
    """Frames per second."""

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> GivenVideo:
        """The video in ``multi_modal_data``.

        Raises:
            KeyError: if there is none.
            ValueError: if its shape is invalid.
        """
        given = data["video"]
        pixels, metadata = given if isinstance(given, tuple) else (given, {})
        count, *sides = np.shape(pixels) or (0,)
        if len(sides) != 3 or 3 not in (sides[0], sides[2]) or not count:
            raise ValueError(f"a video's shape must be (frames, 3, H, W) or (frames, H, W, 3), not {np.shape(pixels)}")
        height, width = sides[:2] if sides[2] == 3 else sides[1:]
        return cls(pixels, FrameGrid(count + count % 2, height, width), float(metadata.get("fps", DEFAULT_FPS)))

    def fps(self, frames: int) -> float:
        """Frame rate of ``frames`` frames that are evenly spaced over the video."""
        return self.frame_rate * (frames - 1) / (self.shape.frames - 1)

    def frames(self, grid: FrameGrid, float_maximum: float) -> Frames:
        """The frames that the model is shown, in the number and size of ``grid``.

        Raises:
            ValueError: if a value is invalid.
        """
        pixels = as_frames(self.pixels, float_maximum)
        last = len(pixels) - 1
        times = [number / self.frame_rate for number in range(last + 1)]
        indices = frames_shown_at(times, sample_times(times, (last + 1) / self.frame_rate, grid.frames))
        if grid != self.shape:
            pixels = np.stack([resize(pixels[index], grid.height, grid.width) for index in indices])
        return Frames(pixels, indices, self.fps(grid.frames))


def as_frames(pixels: Any, float_maximum: float = 255.0) -> NDArray[np.uint8]:
    """Convert frames to uint8 of shape (frames, height, width, 3). An odd last frame is repeated.

    Args:
        pixels: array or tensor of shape (frames, 3, height, width) or (frames, height, width, 3).
        float_maximum: maximum value of floats.

    Raises:
        ValueError: if a value is invalid.
    """
    frames = _as_array(pixels)
    if frames.shape[3] != 3:
        frames = frames.transpose(0, 2, 3, 1)
    if frames.dtype != np.uint8:
        maximum = float_maximum if np.issubdtype(frames.dtype, np.floating) else 255
        if not np.isfinite(frames).all() or frames.min() < 0 or frames.max() > maximum:
            raise ValueError(
                f"a video's values must be from 0 to {maximum:g}, not from {frames.min():g} to {frames.max():g}: do "
                "not normalize them, or set float_maximum"
            )
        frames = np.rint(frames * (255 / maximum)).astype(np.uint8)
    if len(frames) % 2:
        frames = np.concatenate([frames, frames[-1:]])
    return np.ascontiguousarray(frames)


def _as_array(pixels: Any) -> NDArray[Any]:
    """An array of an array or of a tensor on any device. NumPy has no bfloat16: float32 has all of its values."""
    import torch  # imported here because it takes seconds, and an import of QwenVL should not

    if not isinstance(pixels, torch.Tensor):
        return np.asarray(pixels)
    tensor = pixels.detach().cpu()
    return np.asarray(tensor.float() if tensor.dtype == torch.bfloat16 else tensor)
