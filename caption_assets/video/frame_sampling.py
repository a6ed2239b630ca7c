"""Which moments of a window the model gets to see: pure functions of time, no pixels."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

STAY = 2.0
"""Average intervals beyond which a window's last frame is held, and not just followed late."""
FRAME_FACTOR = 2
"""Frame counts are multiples of this: the model's vision tower merges two frames into one temporal patch."""


@dataclass(frozen=True, slots=True)
class FrameSampling:
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


def frame_count(seconds: float, available: int, sampling: FrameSampling) -> int:
    """How many of a window's ``available`` frames to show, given that it lasts ``seconds``.

    The result is even, within the sampling's limits, and never above ``available`` (rounded down to even). It is
    rounded to the nearest even number as in the reference; halfway, to the nearest multiple of four.
    """
    highest = min(sampling.max_frames, available) // FRAME_FACTOR * FRAME_FACTOR
    wanted = min(max(seconds * sampling.fps, sampling.min_frames), highest)
    return max(round(wanted / FRAME_FACTOR) * FRAME_FACTOR, FRAME_FACTOR)


def moments(times: Sequence[float], end: float, count: int) -> tuple[float, ...]:
    """Evenly spaced moments of a window, from its first frame on.

    The last one is that of the last frame. Where that stays for much longer than others, it is one average interval
    before the window's end, so that its stay is seen too.

    Sampling is by time, not by frame number: in a clip of variable frame rate equal steps of the index are not equal
    steps of time, and the model's temporal positions would be wrong.

    Args:
        times: when each frame is shown, in seconds, ascending.
        end: when the last frame is no longer shown, in seconds.
        count: moments, at least 2.
    """
    first, last = times[0], times[-1]
    interval = (last - first) / (len(times) - 1) if len(times) > 1 else end - last
    if end - last > STAY * interval:
        last = max(last, end - interval)
    step = (last - first) / (count - 1)
    return (*(first + step * index for index in range(count - 1)), last)


def shown_at(times: Sequence[float], moments: Sequence[float]) -> tuple[int, ...]:
    """Indices of the frames on show at some moments: the latest at or before each.

    Args:
        times: when each frame is shown, in seconds, ascending.
        moments: in seconds, none before the first frame.
    """
    slack = 1e-6  # seconds; moments fall on frame times, and rounding must not show the frame before
    return tuple(bisect_right(times, moment + slack) - 1 for moment in moments)
