"""The orientation of a clip's pictures: the quarter turns and the mirroring that its file asks a player for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
from av import VideoFrame
from av.sidedata.sidedata import SideData, SideDataContainer
from numpy.typing import NDArray

TOLERANCE_DEGREES = 1.0
"""How far a turn may be from a quarter turn, as in FFmpeg's players (``ffplay -autorotate``). Pictures with any other
turn are left as they are, as browsers, VLC and mpv do."""


@dataclass(frozen=True, slots=True)
class Orientation:
    """One of the eight ways in which a decoded picture can be displayed."""

    rotation: int = 0
    """Degrees counter-clockwise, applied after the mirroring: 0, 90, 180 or 270."""
    mirrored: bool = False
    """Whether left and right change places."""

    @property
    def is_sideways(self) -> bool:
        """Whether width and height change places."""
        return self.rotation % 180 == 90

    def apply(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A picture of (height, width, channels) as it is displayed."""
        return np.rot90(picture[:, ::-1] if self.mirrored else picture, self.rotation // 90)


UPRIGHT = Orientation()


def orientation(a: float, b: float, c: float, d: float) -> Orientation:
    """The orientation of a display matrix.

    Args:
        a: share of a pixel's x in its displayed x (ISO/IEC 14496-12, 6.2.2; ``matrix[0]`` of FFmpeg's display matrix).
        b: share of its x in its displayed y.
        c: share of its y in its displayed x.
        d: share of its y in its displayed y.
    """
    if a * d < b * c:  # a reflection: mirror first, and turn what is left
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
    """The orientation that comes with a frame: the container's before the picture's own. None without either."""
    # Not frame.side_data: the frame keeps that, and is kept by it, until garbage is collected many frames later.
    matrix = SideDataContainer(frame).get("DISPLAYMATRIX")  # type: ignore[call-arg]  # PyAV's stub has no __init__
    if not isinstance(matrix, SideData):
        return None
    values = np.frombuffer(cast(bytes, matrix), np.int32)
    return orientation(*(float(values[index]) for index in (0, 1, 3, 4)))
