import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.captioning.budget import FrameTooNarrow, fit, visual_tokens
from caption_assets.models.variants import QWEN25, SAMPLE, PixelLimits

pytestmark = pytest.mark.fast

LIMITS = st.sampled_from([QWEN25.pixels, SAMPLE.pixels])
SIDES = st.integers(16, 4320)


@given(frames=st.integers(2, 384).map(lambda n: 2 * n), height=SIDES, width=SIDES, limits=LIMITS)
def test_a_window_always_fits(frames: int, height: int, width: int, limits: PixelLimits) -> None:
    if max(height, width) > 8 * min(height, width):
        return  # whole multiples of the patch factor cannot follow very long frames closely
    grid = fit(frames, height, width, limits)
    assert grid.height % limits.factor == grid.width % limits.factor == 0
    assert grid.frames % 2 == 0
    assert 2 <= grid.frames <= frames
    area = grid.height * grid.width
    assert area <= limits.max_pixels or area <= 4 * limits.min_pixels
    assert visual_tokens(grid, limits.factor) <= 32_000


@given(frames=st.integers(2, 384).map(lambda n: 2 * n), height=SIDES, width=SIDES)
def test_a_window_is_scaled_before_it_is_thinned(frames: int, height: int, width: int) -> None:
    if max(height, width) > 8 * min(height, width):
        return
    limits = SAMPLE.pixels
    grid = fit(frames, height, width, limits)
    assert grid.frames == min(frames, limits.total_pixels // limits.min_pixels // 2 * 2)


def test_the_aspect_ratio_is_kept_within_half_a_patch() -> None:
    grid = fit(8, 720, 1280, QWEN25.pixels)
    assert abs(grid.width / grid.height - 16 / 9) < 0.15


def test_1080p_fits_the_context_where_the_reference_fails() -> None:
    grid = fit(26, 1080, 1920, QWEN25.pixels)  # the reference: about 35,000 tokens against a limit of 32,768
    assert grid.frames == 26
    assert visual_tokens(grid, 28) < 13 * 768


def test_frames_that_are_too_narrow_are_refused_with_their_size() -> None:
    with pytest.raises(FrameTooNarrow, match="4000x16"):
        fit(4, 16, 4000, QWEN25.pixels)
