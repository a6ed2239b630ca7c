import asyncio

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from caption_assets.captioning.budget import (
    FrameGrid,
    FrameTooNarrow,
    NoRoom,
    fewer_frames,
    fit,
    fit_context,
    fit_size,
    patch_times,
    reductions,
    smaller_frames,
    visual_tokens,
)
from caption_assets.models.variants import QWEN3, QWEN25, SAMPLE, PixelLimits

pytestmark = pytest.mark.fast

LIMITS = st.sampled_from([QWEN25.pixels, QWEN3.pixels, SAMPLE.pixels])
SIDES = st.integers(16, 4320)


@given(frames=st.integers(2, 384).map(lambda n: 2 * n), height=SIDES, width=SIDES, limits=LIMITS)
def test_fitted_window_is_within_all_limits(frames: int, height: int, width: int, limits: PixelLimits) -> None:
    assume(max(height, width) <= 8 * min(height, width))  # multiples of the patch factor distort narrower frames
    grid = fit(frames, height, width, limits)
    assert grid.height % limits.factor == grid.width % limits.factor == 0
    assert grid.frames % 2 == 0
    assert 2 <= grid.frames <= frames
    area = grid.height * grid.width
    assert area <= limits.max_pixels or area <= 4 * limits.min_pixels
    assert visual_tokens(grid, limits.factor) <= 32_000


@given(frames=st.integers(2, 384).map(lambda n: 2 * n), height=SIDES, width=SIDES)
def test_window_is_scaled_down_before_frames_are_dropped(frames: int, height: int, width: int) -> None:
    assume(max(height, width) <= 8 * min(height, width))
    limits = SAMPLE.pixels
    grid = fit(frames, height, width, limits)
    assert grid.frames == min(frames, limits.total_pixels // limits.min_pixels // 2 * 2)


def test_aspect_ratio_is_kept_within_half_a_patch() -> None:
    grid = fit(8, 720, 1280, QWEN25.pixels)
    assert abs(grid.width / grid.height - 16 / 9) < 0.15


def test_1080p_window_fits_the_context() -> None:
    grid = fit(26, 1080, 1920, QWEN25.pixels)  # 35,000 tokens in the reference, whose limit is 32,768
    assert grid.frames == 26
    assert visual_tokens(grid, 28) < 13 * 768


def test_narrow_frames_are_refused_with_their_size() -> None:
    with pytest.raises(FrameTooNarrow, match="4000x16"):
        fit(4, 16, 4000, QWEN25.pixels)


@given(
    frames=st.integers(1, 384).map(lambda n: 2 * n),
    height=SIDES,
    width=SIDES,
    limits=LIMITS,
    room=st.integers(1, 40_000),
    timestamp_tokens=st.integers(0, 12),
)
def test_video_is_fitted_to_the_context_or_refused(
    frames: int, height: int, width: int, limits: PixelLimits, room: int, timestamp_tokens: int
) -> None:
    assume(max(height, width) <= 8 * min(height, width))

    def visual(grid: FrameGrid) -> int:
        return visual_tokens(grid, limits.factor) + timestamp_tokens * grid.frames // 2

    async def tokens(grid: FrameGrid) -> int:
        return visual(grid)

    wanted = fit(frames, height, width, limits)
    try:
        fitted = asyncio.run(fit_context(wanted, limits, tokens, room))
    except NoRoom:
        assert visual(FrameGrid(2, *fit_size(wanted.height, wanted.width, limits, limits.min_pixels))) > room
        return
    assert visual(fitted) <= room
    assert fitted.frames <= wanted.frames
    assert fitted.height * fitted.width <= wanted.height * wanted.width
    if visual(wanted) <= room:
        assert fitted == wanted
    elif fitted.frames < wanted.frames:  # frames are dropped only at the smallest size
        assert fitted.height * fitted.width <= 2 * limits.min_pixels


@pytest.mark.parametrize("room", [*range(12, 72, 5), *range(80, 800, 37)])
def test_video_fitted_to_the_context_has_the_most_frames_and_then_the_largest_ones(room: int) -> None:
    limits = PixelLimits(28, min_pixels=12 * 28**2, max_pixels=768 * 28**2)
    wanted = FrameGrid(8, 12 * 28, 16 * 28)

    async def tokens(grid: FrameGrid) -> int:
        return visual_tokens(grid, limits.factor)

    sizes = [fit_size(wanted.height, wanted.width, limits, squares * 28**2) for squares in range(12, 12 * 16 + 1)]
    grids = [FrameGrid(frames, *size) for frames in (2, 4, 6, 8) for size in sizes]
    fitting = [(grid.frames, grid.height * grid.width) for grid in grids if visual_tokens(grid, 28) <= room]
    fitted = asyncio.run(fit_context(wanted, limits, tokens, room))
    assert (fitted.frames, fitted.height * fitted.width) == max(fitting)


def test_video_without_room_is_refused_with_the_tokens_of_the_smallest_one() -> None:
    limits = PixelLimits(28, min_pixels=12 * 28**2)

    async def tokens(grid: FrameGrid) -> int:
        return visual_tokens(grid, limits.factor)

    for room, left in ((11, 11), (-5, 0)):
        with pytest.raises(NoRoom, match=f"has {left} tokens left for the video, but two frames .* take 12") as refused:
            asyncio.run(fit_context(FrameGrid(8, 12 * 28, 16 * 28), limits, tokens, room))
        assert refused.value.tokens == 12


def test_number_of_frames_is_even_where_the_limits_allow_an_odd_one() -> None:
    limits = PixelLimits(28, min_pixels=16 * 28**2, total_pixels=5 * 16 * 28**2 + 28**2)
    assert fit(8, 112, 112, limits).frames == 4


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (476, 644)),
        ((1080, 1920), (560, 1008)),
        ((144, 176), (308, 364)),
        ((455, 1350), (448, 1344)),  # rounded to the maximum area
        ((230, 440), (224, 448)),  # rounded to the minimum area
        ((10, 1000), (56, 3192)),
        ((30, 5900), (28, 5908)),
        ((55, 11000), (28, 10948)),
    ],
)
def test_size_is_that_of_qwens_processor(size: tuple[int, int], expected: tuple[int, int]) -> None:
    """The expected sizes are those of ``smart_resize`` in transformers."""
    assert fit_size(*size, QWEN25.pixels, QWEN25.pixels.max_pixels) == expected


def test_aspect_ratio_of_200_is_the_maximum() -> None:
    assert fit(2, 28, 200 * 28, QWEN25.pixels).frames == 2
    with pytest.raises(FrameTooNarrow):
        fit(2, 28, 200 * 28 + 1, QWEN25.pixels)


def test_bytes_of_a_grid_are_those_of_its_frames() -> None:
    assert FrameGrid(4, 56, 84).bytes == np.zeros((4, 56, 84, 3), np.uint8).nbytes


@pytest.mark.parametrize("room", [393, 800, 3136])
def test_frames_with_constant_tokens_are_dropped_and_not_scaled(room: int) -> None:
    async def tokens(grid: FrameGrid) -> int:
        return 196 * grid.frames + 1  # LLaVA-OneVision

    wanted = FrameGrid(32, 448, 784)
    fitted = asyncio.run(fit_context(wanted, QWEN25.pixels, tokens, room))
    assert fitted == FrameGrid((room - 1) // 196 // 2 * 2, 448, 784)


def test_reductions_name_fewer_and_smaller_frames() -> None:
    wanted = FrameGrid(8, 112, 140)
    assert reductions(wanted, wanted) == ()
    assert reductions(wanted, FrameGrid(4, 112, 140)) == ("fewer_frames",)
    assert reductions(wanted, FrameGrid(4, 84, 112)) == ("fewer_frames", "smaller_frames")


@given(frames=st.integers(1, 384).map(lambda n: 2 * n), height=SIDES, width=SIDES, limits=LIMITS)
def test_fewer_and_smaller_frames_stay_within_limits(frames: int, height: int, width: int, limits: PixelLimits) -> None:
    assume(max(height, width) <= 8 * min(height, width))
    grid = fit(frames, height, width, limits)
    fewer = fewer_frames(grid)
    assert 2 <= fewer.frames <= max(grid.frames // 2, 2)
    assert fewer.frames % 2 == 0
    smaller = smaller_frames(grid, limits)
    assert smaller.height * smaller.width <= grid.height * grid.width
    assert smaller.height % limits.factor == smaller.width % limits.factor == 0


@pytest.mark.parametrize(("frames", "expected"), [(16, 8), (10, 4), (6, 2), (2, 2)])
def test_fewer_frames_are_half_of_them_in_pairs(frames: int, expected: int) -> None:
    assert fewer_frames(FrameGrid(frames, 448, 448)) == FrameGrid(expected, 448, 448)


def test_smaller_frames_have_half_the_area() -> None:
    limits = PixelLimits(28, min_pixels=16 * 28**2)
    assert smaller_frames(FrameGrid(4, 448, 448), limits) == FrameGrid(4, 308, 308)  # 11 x 11 of 16 x 16 squares


def test_patch_time_is_the_mean_of_its_frames() -> None:
    assert patch_times(4, 2.0) == [0.25, 1.25]
