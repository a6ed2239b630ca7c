"""The reference decoder: all pictures of a clip, decoded by FFmpeg's command line.

It is Debian's FFmpeg, a different version from the library in PyAV.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SIZE = 24, 32
"""Height and width of the pictures, large enough to distinguish neighbors."""


@dataclass(frozen=True, slots=True)
class FullDecode:
    """The pictures that a player shows, with their times."""

    times: tuple[float, ...]
    """Presentation time of each picture, in seconds from the first."""
    pictures: NDArray[np.uint8]
    """Gray levels of shape (pictures, height, width)."""

    def __post_init__(self) -> None:
        if len(self.times) != len(self.pictures):
            raise AssertionError(f"{len(self.times)} times for {len(self.pictures)} pictures")

    def nearest(self, picture: NDArray[np.uint8]) -> list[int]:
        """Numbers of the pictures nearest to this one; near-ties are all included."""
        distances = np.abs(self.pictures.astype(float) - picture).mean((1, 2))
        return [int(number) for number in np.flatnonzero(distances <= distances.min() + 0.25)]

    def shown_at(self, time: float) -> int:
        """Number of the picture shown at a time, in seconds from the first."""
        return max(bisect_right(self.times, time + 0.002) - 1, 0)


def full_decode(path: Path, size: tuple[int, int] = SIZE) -> FullDecode:
    """Decode all of a file's video by FFmpeg's command line.

    Args:
        path: path of the file.
        size: height and width of the pictures.
    """
    height, width = size
    program = shutil.which("ffmpeg")
    if program is None:
        raise RuntimeError("FFmpeg's command line is not installed: run `make system`, or apt-get install ffmpeg")
    command = [
        *(program, "-hide_banner", "-nostdin", "-loglevel", "info", "-i", str(path)),
        *("-map", "0:v:0", "-an", "-vf", f"scale={width}:{height}:flags=area,format=gray,showinfo=checksum=0"),
        *("-fps_mode", "passthrough", "-f", "rawvideo", "-"),
    ]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    pictures = np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width)
    times = [float(each) for each in re.findall(rb"\bn: *\d+ pts: *\S+ pts_time:(\S+)", done.stderr)]
    return FullDecode(tuple(time - times[0] for time in times), pictures)


def to_gray(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The gray levels of RGB pictures."""
    weights = np.array([0.299, 0.587, 0.114])
    return np.asarray(np.rint(pixels @ weights), np.uint8)
