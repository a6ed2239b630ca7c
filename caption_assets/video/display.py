"""The display orientation of a clip's pictures: the rotation and mirroring that its file requests from a player."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
from av import VideoFrame
from av.sidedata.sidedata import SideData, SideDataContainer
from numpy.typing import NDArray

TOLERANCE_DEGREES = 1.0
"""Maximum deviation from a quarter turn, as in FFmpeg's players (``ffplay -autorotate``). Other rotations are ignored,
as in browsers, VLC and mpv."""


@dataclass(frozen=True, slots=True)
class Orientation:
    """One of the eight orientations in which a decoded picture can be displayed."""

    rotation: int = 0
    """Rotation in degrees counter-clockwise, applied after mirroring: 0, 90, 180 or 270."""
    mirrored: bool = False
    """Whether the picture is mirrored horizontally."""

    @property
    def is_sideways(self) -> bool:
        """Whether width and height are swapped."""
        return self.rotation % 180 == 90

    def apply(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A picture of shape (height, width, channels) in its display orientation."""
        return np.rot90(picture[:, ::-1] if self.mirrored else picture, self.rotation // 90)


UPRIGHT = Orientation()


def orientation(a: float, b: float, c: float, d: float) -> Orientation:
    """The orientation of a display matrix (ISO/IEC 14496-12, 6.2.2), which moves a pixel at (x, y).

    Args:
        a: factor of x in the displayed x; ``matrix[0]`` of FFmpeg's display matrix.
        b: factor of x in the displayed y.
        c: factor of y in the displayed x.
        d: factor of y in the displayed y.
    """
    if a * d < b * c:  # a reflection: mirroring followed by a rotation
        a, b, mirrored = -a, -b, True
    else:
        mirrored = False
    if not (math.hypot(a, b) and math.hypot(c, d)):
        return UPRIGHT
    degrees = math.degrees(math.atan2(-b, a))  # y points down
    turns = round(degrees / 90)
    if abs(degrees - 90 * turns) > TOLERANCE_DEGREES:
        turns = 0
    return Orientation(90 * turns % 360, mirrored)


def frame_orientation(frame: VideoFrame) -> Orientation | None:
    """The orientation in a frame's side data, where FFmpeg copies it from container or picture; None without any."""
    # frame.side_data would form a reference cycle: frames would stay in memory until the next garbage collection.
    matrix = SideDataContainer(frame).get("DISPLAYMATRIX")  # type: ignore[call-arg]  # PyAV's stub has no __init__
    if not isinstance(matrix, SideData):
        return None
    values = np.frombuffer(cast(bytes, matrix), np.int32)
    return orientation(*(float(values[index]) for index in (0, 1, 3, 4)))
