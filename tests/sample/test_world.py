import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.sample.world import MOTIONS, TRAVEL, random_scene, render

pytestmark = pytest.mark.fast

SIDES = st.integers(80, 640)


@given(seed=st.integers(0, 2**32), width=SIDES, height=SIDES)
def test_shape_stays_inside_the_frame(seed: int, width: int, height: int) -> None:
    scene = random_scene(np.random.default_rng(seed), width, height)
    for time in (0.0, 0.5, 1.0):
        x, y = scene.center(time)
        reach = scene.radius * min(width, height)
        assert reach * 0.99 <= x * width <= width - reach * 0.99
        assert reach * 0.99 <= y * height <= height - reach * 0.99


@given(seed=st.integers(0, 2**32))
def test_shape_moves_in_the_direction_of_its_motion(seed: int) -> None:
    scene = random_scene(np.random.default_rng(seed), 320, 240)
    traveled = np.subtract(scene.end, scene.start)
    direction = np.array(MOTIONS[scene.motion])
    assert np.array_equal(np.sign(np.round(traveled, 6)), direction)
    if direction.any():
        assert TRAVEL[0] - 1e-6 <= np.abs(traveled).max() <= TRAVEL[1] + 1e-6


def test_frame_shows_the_shapes_color_at_its_center() -> None:
    scene = random_scene(np.random.default_rng(3), 160, 120)
    for time, frame in zip((0.0, 1.0), render(scene, 160, 120, (0.0, 1.0), np.random.default_rng(0)), strict=True):
        x, y = scene.center(time)
        assert tuple(frame[int(y * 120), int(x * 160)]) == scene.rgb
