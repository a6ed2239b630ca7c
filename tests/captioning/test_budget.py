import asyncio

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


def test_patch_time_is_the_mean_of_its_frames() -> None:
    assert patch_times(4, 2.0) == [0.25, 1.25]
