import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from caption_assets.video.container import open_video
from caption_assets.video.display import UPRIGHT, Orientation, frame_orientation, orientation
from tests.videos import counting_video, with_display_matrix

pytestmark = pytest.mark.fast

EIGHT = [
    (1, 0, 0, 1),
    (0, 1, -1, 0),
    (-1, 0, 0, -1),
    (0, -1, 1, 0),
    (-1, 0, 0, 1),
    (1, 0, 0, -1),
    (0, 1, 1, 0),
    (0, -1, -1, 0),
]
"""a, b, c and d of the matrices that rotate a picture by quarter turns, plain and mirrored."""


def mapped(picture: NDArray[Any], a: int, b: int, c: int, d: int) -> NDArray[Any]:
    """The picture with each pixel at (x, y) moved to (ax + cy, bx + dy), as in ISO/IEC 14496-12."""
    height, width = picture.shape
    places = {(b * x + d * y, a * x + c * y): picture[y, x] for y in range(height) for x in range(width)}
    rows, columns = (sorted({place[axis] for place in places}) for axis in (0, 1))
    return np.array([[places[row, column] for column in columns] for row in rows])


@pytest.mark.parametrize("matrix", EIGHT)
def test_orientation_moves_pixels_as_its_matrix_does(matrix: tuple[int, int, int, int]) -> None:
    picture = np.arange(6, dtype=np.uint8).reshape(2, 3)
    shown = orientation(*matrix).apply(picture[..., None])[..., 0]
    assert np.array_equal(shown, mapped(picture, *matrix))


def test_orientations_of_the_eight_matrices_differ() -> None:
    found = {orientation(*matrix) for matrix in EIGHT}
    assert found == {
        Orientation(turn, mirrored) for turn, mirrored in itertools.product((0, 90, 180, 270), (False, True))
    }


@pytest.mark.parametrize("matrix", EIGHT)
def test_orientation_is_sideways_if_it_swaps_width_and_height(matrix: tuple[int, int, int, int]) -> None:
    shown = orientation(*matrix).apply(np.zeros((2, 3, 1), np.uint8))
    assert orientation(*matrix).is_sideways is (shown.shape == (3, 2, 1))


def test_upright_changes_nothing() -> None:
    picture = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    assert np.array_equal(UPRIGHT.apply(picture), picture)


@pytest.mark.parametrize("matrix", EIGHT[1:])  # FFmpeg omits the identity
def test_orientation_of_a_decoded_frame_is_that_of_the_display_matrix(matrix: tuple[int, int, int, int]) -> None:
    data = with_display_matrix(counting_video(2), *matrix)
    with open_video(data) as (container, stream):
        found = frame_orientation(next(container.decode(stream)))
    assert found == orientation(*matrix)


def test_orientation_of_a_decoded_frame_without_side_data_is_none() -> None:
    with open_video(counting_video(2)) as (container, stream):
        assert frame_orientation(next(container.decode(stream))) is None


@pytest.mark.parametrize(
    ("degrees", "rotation"),
    [(0.9, 0), (89.5, 90), (91.2, 0), (178.8, 0), (45, 0), (60, 0), (-91, 270), (180.4, 180)],
)
def test_only_rotations_near_a_quarter_turn_are_applied(degrees: float, rotation: int) -> None:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    assert orientation(cos, -sin, sin, cos) == Orientation(rotation)


@pytest.mark.parametrize("matrix", [(0, 0, 0, 0), (1, 0, 0, 0), (0, 0, 0, 1), (0, 1, 0, 0), (0, 0, 1, 0), (1, 0, 1, 0)])
def test_singular_matrix_is_ignored(matrix: tuple[int, int, int, int]) -> None:
    assert orientation(*matrix) == UPRIGHT
