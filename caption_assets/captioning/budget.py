"""The budget of a window: number and size of the frames that fit a model, known before anything is decoded."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from caption_assets.models.variants import PixelLimits
from caption_assets.video.frame_sampling import FRAME_FACTOR

MAX_ASPECT_RATIO = 200
"""Qwen's processor refuses frames that are longer than this many times their shorter side."""
FEWER_FRAMES = "fewer_frames"
SMALLER_FRAMES = "smaller_frames"
"""The entries of a row's ``reductions``: the window was shown with less than its sampling and the frame limits give."""


class FrameTooNarrow(Exception):
    """A clip whose frames are too long and thin for the model."""

    kind = "frame_size"
    """One word for tables."""


class NoRoom(Exception):
    """A prompt beside which not even two small frames fit the model's context.

    Args:
        least: tokens that they take.
    """

    kind = "too_long"
    """One word for tables."""

    def __init__(self, room: int, least: int) -> None:
        super().__init__(f"the context has {max(room, 0)} tokens left for the video, and two small frames take {least}")
        self.least = least


@dataclass(frozen=True, slots=True)
class FrameGrid:
    """The video a request will carry: so many frames of this size."""

    frames: int
    """Even."""
    height: int
    """Pixels, a multiple of the model's patch factor."""
    width: int
    """Pixels, a multiple of the model's patch factor."""

    @property
    def bytes(self) -> int:
        """Memory of the frames as uint8 RGB."""
        return 3 * self.frames * self.height * self.width


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
    return FrameGrid(frames, *fit_size(height, width, limits, limits.total_pixels // frames))


async def fit_context(
    wanted: FrameGrid, limits: PixelLimits, tokens: Callable[[FrameGrid], Awaitable[int]], room: int
) -> FrameGrid:
    """Scale, and where that is not enough thin, a video until it takes at most ``room`` tokens.

    Nothing is assumed of how tokens depend on frames, but that fewer and smaller ones take no more.

    Args:
        wanted: the video as the pixel limits allow it.
        limits: the model's patch factor and pixel limits.
        tokens: tokens that a video takes in the prompt.
        room: tokens there are for it.

    Raises:
        NoRoom: if not even two frames of the smallest size fit.
    """

    def scaled(frames: int, squares: int) -> FrameGrid:
        return FrameGrid(frames, *_shrunk(wanted, limits, squares * limits.factor**2))

    async def fits(grid: FrameGrid) -> bool:
        return await tokens(grid) <= room

    if await fits(wanted):
        return wanted
    fewest, most = (area // limits.factor**2 for area in (limits.min_pixels, wanted.height * wanted.width))
    pairs = await _largest(1, wanted.frames // FRAME_FACTOR, lambda count: fits(scaled(FRAME_FACTOR * count, fewest)))
    if pairs is None:
        raise NoRoom(room, await tokens(scaled(FRAME_FACTOR, fewest)))
    frames = FRAME_FACTOR * pairs
    if await fits(as_wanted := FrameGrid(frames, wanted.height, wanted.width)):
        return as_wanted  # a model whose frames take the same tokens at any size
    squares = await _largest(fewest, most, lambda count: fits(scaled(frames, count)))
    return scaled(frames, fewest if squares is None else squares)


async def _largest(low: int, high: int, is_possible: Callable[[int], Awaitable[bool]]) -> int | None:
    """The largest number from ``low`` to ``high`` that is possible, by bisection; None if the lowest is not."""
    if not await is_possible(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if await is_possible(middle) else (low, middle - 1)
    return low


def fit_size(height: int, width: int, limits: PixelLimits, most: int) -> tuple[int, int]:
    """The size nearest to the source's whose sides are multiples of the factor and whose area is within limits.

    The rule is that of Qwen's processor ("smart resize"), so that the processor would leave these frames as they are.

    Args:
        height: height of the source's frames in pixels.
        width: width of the source's frames in pixels.
        limits: the model's patch factor and pixel limits.
        most: largest area in pixels, beside that of ``limits``; an area below the least one counts as that.
    """
    factor = limits.factor
    most = max(limits.min_pixels, min(limits.max_pixels, most))
    fitted = [max(round(side / factor), 1) * factor for side in (height, width)]
    area = fitted[0] * fitted[1]
    if area > most:
        scale = math.sqrt(most / (height * width))
        fitted = [max(math.floor(side * scale / factor), 1) * factor for side in (height, width)]
    elif area < limits.min_pixels:
        scale = math.sqrt(limits.min_pixels / (height * width))
        fitted = [math.ceil(side * scale / factor) * factor for side in (height, width)]
    return fitted[0], fitted[1]


def fewer_frames(grid: FrameGrid) -> FrameGrid:
    """Half the frames: the second rung of the ladder for a window that does not go through."""
    frames = max(grid.frames // 2 // FRAME_FACTOR * FRAME_FACTOR, FRAME_FACTOR)
    return FrameGrid(frames, grid.height, grid.width)


def smaller_frames(grid: FrameGrid, limits: PixelLimits) -> FrameGrid:
    """Half the area of each frame, but no less than the model's least: the third rung."""
    return FrameGrid(grid.frames, *_shrunk(grid, limits, grid.height * grid.width // 2))


def _shrunk(grid: FrameGrid, limits: PixelLimits, most: int) -> tuple[int, int]:
    """The size of ``grid``'s frames brought down to an area of ``most``; rounding to patches never makes it larger."""
    sizes = fit_size(grid.height, grid.width, limits, most), (grid.height, grid.width)
    return min(sizes, key=math.prod)


def reductions(wanted: FrameGrid, shown: FrameGrid) -> tuple[str, ...]:
    """What was taken from a video to make it fit or go through."""
    found = {
        FEWER_FRAMES: shown.frames < wanted.frames,
        SMALLER_FRAMES: shown.height * shown.width < wanted.height * wanted.width,
    }
    return tuple(name for name, reduced in found.items() if reduced)


def visual_tokens(grid: FrameGrid, factor: int) -> int:
    """Tokens of a video's pixels in the prompt: one for each ``factor`` square of each pair of frames."""
    return grid.frames // FRAME_FACTOR * (grid.height // factor) * (grid.width // factor)


def patch_times(frames: int, fps: float) -> list[float]:
    """When each temporal patch (two frames) of a video is shown, in seconds: the mean of its frames' times.

    Qwen3-VL writes these times into the prompt, one before each patch (transformers, Qwen3VLProcessor).
    """
    return [(first + 0.5) / fps for first in range(0, frames, FRAME_FACTOR)]
