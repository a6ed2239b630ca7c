"""Which moments of a window the model gets to see: pure functions of time, no pixels."""

from __future__ import annotations

from dataclasses import dataclass

FRAME_FACTOR = 2
"""Frame counts are multiples of this: the model's vision tower merges two frames into one temporal patch."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How densely a window is sampled. Defaults are the reference's (NeMo Curator and Qwen: 2 fps, 4 to 768 frames).

    Raises:
        ValueError: if a value is out of its range.
    """

    fps: float = 2.0
    """Frames per second of clip time."""
    min_frames: int = 4
    max_frames: int = 768

    def __post_init__(self) -> None:
        if self.fps <= 0:
            raise ValueError(f"sampling fps is {self.fps}: give a number above 0")
        if not FRAME_FACTOR <= self.min_frames <= self.max_frames:
            raise ValueError(
                f"frame limits are {self.min_frames} to {self.max_frames}: give {FRAME_FACTOR} <= minimum <= maximum"
            )


def frame_count(seconds: float, available: int, sampling: Sampling) -> int:
    """How many of a window's ``available`` frames to show, given that it lasts ``seconds``.

    The result is even, within the sampling's limits, and never above ``available`` (rounded down to even).
    """
    wanted = min(max(seconds * sampling.fps, sampling.min_frames), sampling.max_frames, available)
    return max(int(wanted) // FRAME_FACTOR * FRAME_FACTOR, FRAME_FACTOR)


def frame_times(first: float, last: float, count: int) -> tuple[float, ...]:
    """``count`` evenly spaced moments from ``first`` to ``last``, both included, in seconds.

    Sampling is by time, not by frame number: in a clip of variable frame rate equal steps of the index are not equal
    steps of time, and the model's temporal positions would be wrong.
    """
    step = (last - first) / (count - 1)
    return (*tuple(first + step * index for index in range(count - 1)), last)
