import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from caption_assets.video.display import UPRIGHT, Orientation, orientation

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
"""a, b, c and d of the matrices that turn a picture by quarters, plain and mirrored."""


def mapped(picture: NDArray[Any], a: int, b: int, c: int, d: int) -> NDArray[Any]:
    """Each pixel at (x, y) moved to (ax + cy, bx + dy), as ISO/IEC 14496-12 has it."""
    height, width = picture.shape
    places = {(b * x + d * y, a * x + c * y): picture[y, x] for y in range(height) for x in range(width)}
    rows, columns = (sorted({place[axis] for place in places}) for axis in (0, 1))
    return np.array([[places[row, column] for column in columns] for row in rows])


@pytest.mark.parametrize("matrix", EIGHT)
def test_each_orientation_moves_pixels_as_its_matrix_does(matrix: tuple[int, int, int, int]) -> None:
    picture = np.arange(6, dtype=np.uint8).reshape(2, 3)
    shown = orientation(*matrix).apply(picture[..., None])[..., 0]
    assert np.array_equal(shown, mapped(picture, *matrix))


def test_the_eight_matrices_are_eight_orientations() -> None:
    found = {orientation(*matrix) for matrix in EIGHT}
    assert found == {
        Orientation(turn, mirrored) for turn, mirrored in itertools.product((0, 90, 180, 270), (False, True))
    }


@pytest.mark.parametrize(("degrees", "rotation"), [(0.9, 0), (89.5, 90), (45, 0), (60, 0), (-91, 270), (180.4, 180)])
def test_only_turns_near_a_quarter_are_applied(degrees: float, rotation: int) -> None:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    assert orientation(cos, -sin, sin, cos) == Orientation(rotation)


@pytest.mark.parametrize("matrix", [(0, 0, 0, 0), (1, 0, 0, 0), (0, 0, 0, 1)])
def test_a_matrix_that_flattens_pictures_turns_nothing(matrix: tuple[int, int, int, int]) -> None:
    assert orientation(*matrix) == UPRIGHT
