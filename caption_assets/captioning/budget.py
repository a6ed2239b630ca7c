"""How many frames of which size fit a model's pixel limits: known before anything is decoded."""

from __future__ import annotations

import math
from dataclasses import dataclass

from caption_assets.clips.sampling import FRAME_FACTOR
from caption_assets.models.variants import PixelLimits

MAX_ASPECT_RATIO = 200
"""Qwen's processor refuses frames that are longer than this many times their shorter side."""


class FrameTooNarrow(Exception):
    """A clip whose frames are too long and thin for the model."""

    kind = "frame_size"
    """One word for tables."""


@dataclass(frozen=True, slots=True)
class FrameGrid:
    """The video a request will carry: so many frames of this size."""

    frames: int
    height: int
    """Pixels, a multiple of the model's patch factor."""
    width: int
    """Pixels, a multiple of the model's patch factor."""


def fit(frames: int, height: int, width: int, limits: PixelLimits) -> FrameGrid:
    """Scale, and where that is not enough thin, a window until it keeps within ``limits``.

    Args:
        frames: frames wanted, even.
        height: height of the source's frames in pixels, as displayed.
        width: width of the source's frames in pixels, as displayed.
        limits: the model's patch factor and pixel limits.

    Raises:
        FrameTooNarrow: if the aspect ratio is above 200.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise FrameTooNarrow(
            f"frames of {width}x{height} pixels have an aspect ratio above {MAX_ASPECT_RATIO}: crop the clip"
        )
    most = limits.total_pixels // limits.min_pixels // FRAME_FACTOR * FRAME_FACTOR
    frames = min(frames, most)
    max_pixels = max(limits.min_pixels, min(limits.max_pixels, limits.total_pixels // frames))
    return FrameGrid(frames, *_fit_size(height, width, limits.factor, limits.min_pixels, max_pixels))


def _fit_size(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The size nearest to the source's whose sides are multiples of ``factor`` and whose area is within limits.

    The rule is that of Qwen's processor ("smart resize"), so that the processor would leave these frames as they are.
    """
    fitted = [max(round(side / factor), 1) * factor for side in (height, width)]
    area = fitted[0] * fitted[1]
    if area > max_pixels:
        scale = math.sqrt(max_pixels / (height * width))
        fitted = [max(math.floor(side * scale / factor), 1) * factor for side in (height, width)]
    elif area < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        fitted = [math.ceil(side * scale / factor) * factor for side in (height, width)]
    return fitted[0], fitted[1]


def visual_tokens(grid: FrameGrid, factor: int) -> int:
    """Tokens that a video of this grid takes in the prompt: one for each ``factor`` square of each pair of frames."""
    return grid.frames // FRAME_FACTOR * (grid.height // factor) * (grid.width // factor)
