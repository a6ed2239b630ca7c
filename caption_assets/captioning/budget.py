"""The frame budget of a window: number and size of the frames that fit a model, computed before decoding."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from caption_assets.models.variants import PixelLimits
from caption_assets.video.frame_sampling import FRAME_FACTOR

MAX_ASPECT_RATIO = 200
"""Maximum aspect ratio that Qwen's processor accepts."""
FEWER_FRAMES = "fewer_frames"
SMALLER_FRAMES = "smaller_frames"
"""The values of ``reductions``: the model got fewer or smaller frames than sampling and the frame limits give."""


class FrameTooNarrow(Exception):
    """A clip whose frames have an aspect ratio that the model does not accept."""

    kind = "frame_size"
    """Error kind in tables."""


class NoRoom(Exception):
    """A prompt that leaves no room in the model's context for two frames of the minimum size.

    Args:
        room: tokens left for the video.
        tokens: tokens of these two frames.
    """

    kind = "too_long"
    """Error kind in tables."""

    def __init__(self, room: int, tokens: int) -> None:
        super().__init__(
            f"the context has {max(room, 0)} tokens left for the video, but two frames of minimum size take {tokens}"
        )
        self.tokens = tokens


@dataclass(frozen=True, slots=True)
class FrameGrid:
    """Number and size of the frames of a request's video."""

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
    """Scale a window's frames, and drop frames where that is not enough, until they are within ``limits``.

    Args:
        frames: wanted number of frames, even.
        height: height of the source's frames in pixels, as displayed.
        width: width of the source's frames in pixels, as displayed.
        limits: the model's patch factor and pixel limits.

    Raises:
        FrameTooNarrow: if the aspect ratio is above 200.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise FrameTooNarrow(
            f"frames of {width}x{height} pixels exceed the maximum aspect ratio of {MAX_ASPECT_RATIO}: crop the clip"
        )
    max_frames = limits.total_pixels // limits.min_pixels // FRAME_FACTOR * FRAME_FACTOR
    frames = min(frames, max_frames)
    return FrameGrid(frames, *fit_size(height, width, limits, limits.total_pixels // frames))


async def fit_context(
    wanted: FrameGrid, limits: PixelLimits, tokens: Callable[[FrameGrid], Awaitable[int]], room: int
) -> FrameGrid:
    """Scale a video's frames, and drop frames where that is not enough, until it takes at most ``room`` tokens.

    The only assumption about ``tokens`` is that fewer or smaller frames do not take more.

    Args:
        wanted: the largest video within the pixel limits.
        limits: the model's patch factor and pixel limits.
        tokens: returns the number of tokens that a video takes in the prompt.
        room: maximum number of tokens.

    Raises:
        NoRoom: if two frames of the minimum size do not fit.
    """

    def scaled(frames: int, squares: int) -> FrameGrid:
        return FrameGrid(frames, *_shrunk(wanted, limits, squares * limits.factor**2))

    async def fits(grid: FrameGrid) -> bool:
        return await tokens(grid) <= room

    if await fits(wanted):
        return wanted
    smallest, largest = (area // limits.factor**2 for area in (limits.min_pixels, wanted.height * wanted.width))
    pairs = await _largest(1, wanted.frames // FRAME_FACTOR, lambda count: fits(scaled(FRAME_FACTOR * count, smallest)))
    if pairs is None:
        raise NoRoom(room, await tokens(scaled(FRAME_FACTOR, smallest)))
    frames = FRAME_FACTOR * pairs
    if await fits(full_size := FrameGrid(frames, wanted.height, wanted.width)):
        return full_size  # some models take the same number of tokens for frames of any size
    squares = await _largest(smallest, largest, lambda count: fits(scaled(frames, count)))
    return scaled(frames, smallest if squares is None else squares)


async def _largest(low: int, high: int, is_valid: Callable[[int], Awaitable[bool]]) -> int | None:
    """The largest valid number from ``low`` to ``high``, by bisection; None if ``low`` is not valid."""
    if not await is_valid(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if await is_valid(middle) else (low, middle - 1)
    return low


def fit_size(height: int, width: int, limits: PixelLimits, max_area: int) -> tuple[int, int]:
    """The size nearest to the source's with an area within the limits and sides that are multiples of the factor.

    This is the rule of Qwen's processor ("smart resize"), so that the processor does not resize these frames again.

    Args:
        height: height of the source's frames in pixels.
        width: width of the source's frames in pixels.
        limits: the model's patch factor and pixel limits.
        max_area: maximum area in pixels, in addition to ``limits``; at least the minimum area of ``limits`` is used.
    """
    factor = limits.factor
    max_area = max(limits.min_pixels, min(limits.max_pixels, max_area))
    fitted = [max(round(side / factor), 1) * factor for side in (height, width)]
    area = fitted[0] * fitted[1]
    if area > max_area:
        scale = math.sqrt(max_area / (height * width))
        fitted = [max(math.floor(side * scale / factor), 1) * factor for side in (height, width)]
    elif area < limits.min_pixels:
        scale = math.sqrt(limits.min_pixels / (height * width))
        fitted = [math.ceil(side * scale / factor) * factor for side in (height, width)]
    return fitted[0], fitted[1]


def fewer_frames(grid: FrameGrid) -> FrameGrid:
    """Half the frames; see ``captioner.retry_grids``."""
    frames = max(grid.frames // 2 // FRAME_FACTOR * FRAME_FACTOR, FRAME_FACTOR)
    return FrameGrid(frames, grid.height, grid.width)


def smaller_frames(grid: FrameGrid, limits: PixelLimits) -> FrameGrid:
    """Half the area of each frame, but at least the model's minimum; see ``captioner.retry_grids``."""
    return FrameGrid(grid.frames, *_shrunk(grid, limits, grid.height * grid.width // 2))


def _shrunk(grid: FrameGrid, limits: PixelLimits, max_area: int) -> tuple[int, int]:
    """The size of ``grid``'s frames, reduced to ``max_area``. Rounding to patches never enlarges it."""
    sizes = fit_size(grid.height, grid.width, limits, max_area), (grid.height, grid.width)
    return min(sizes, key=math.prod)


def reductions(wanted: FrameGrid, shown: FrameGrid) -> tuple[str, ...]:
    """The reductions from the wanted video to the one that was shown."""
    found = {
        FEWER_FRAMES: shown.frames < wanted.frames,
        SMALLER_FRAMES: shown.height * shown.width < wanted.height * wanted.width,
    }
    return tuple(name for name, reduced in found.items() if reduced)


def visual_tokens(grid: FrameGrid, factor: int) -> int:
    """Number of visual tokens of a video: one for each square of ``factor`` pixels in each pair of frames."""
    return grid.frames // FRAME_FACTOR * (grid.height // factor) * (grid.width // factor)


def patch_times(frames: int, fps: float) -> list[float]:
    """The time of each temporal patch (two frames) of a video, in seconds: the mean of its frames' times.

    Qwen3-VL's prompts hold these times, one before each patch (transformers, Qwen3VLProcessor).
    """
    return [(first + 0.5) / fps for first in range(0, frames, FRAME_FACTOR)]
