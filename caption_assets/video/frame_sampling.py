"""The sampling of a window's frames for the model: pure functions of time, without pixels."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

LONG_LAST_FRAME = 2.0
"""Average intervals from which a window's last frame counts as a still that is sampled for its full duration."""
FRAME_FACTOR = 2
"""Divisor of all frame counts: the model's vision tower merges two frames into one temporal patch."""


@dataclass(frozen=True, slots=True)
class FrameSampling:
    """Sampling rate and limits. The defaults are those of NeMo Curator and Qwen: 2 fps, 4 to 768 frames.

    Raises:
        ValueError: if a value is out of its range.
    """

    fps: float = 2.0
    """Frames per second of clip time."""
    min_frames: int = 4
    """Minimum number of frames of a window, if it has that many."""
    max_frames: int = 768
    """Maximum number of frames of a window."""

    def __post_init__(self) -> None:
        if self.fps <= 0:
            raise ValueError(f"sampling fps is {self.fps}: give a number above 0")
        if not FRAME_FACTOR <= self.min_frames <= self.max_frames:
            raise ValueError(
                f"frame limits are {self.min_frames} to {self.max_frames}: give {FRAME_FACTOR} <= minimum <= maximum"
            )


def frame_count(seconds: float, available: int, sampling: FrameSampling) -> int:
    """Number of frames to sample from a window of ``available`` frames that lasts ``seconds``.

    The number is even, within the sampling's limits, and at most ``available``, rounded down to even. As in NeMo
    Curator, it is rounded to the nearest even number; halfway between two, to the multiple of four.
    """
    highest = min(sampling.max_frames, available) // FRAME_FACTOR * FRAME_FACTOR
    wanted = min(max(seconds * sampling.fps, sampling.min_frames), highest)
    return max(round(wanted / FRAME_FACTOR) * FRAME_FACTOR, FRAME_FACTOR)


def sample_times(times: Sequence[float], end: float, count: int) -> tuple[float, ...]:
    """Evenly spaced times in a window, beginning at its first frame.

    The last time is that of the last frame. If the last frame is shown for more than ``LONG_LAST_FRAME`` average
    intervals, it is one average interval before the window's end, so that the still is sampled too.

    Frames are sampled by time, because the model's temporal positions assume equal intervals: in a clip of variable
    frame rate, frames at equal steps of the index are not equally spaced in time.

    Args:
        times: presentation time of each frame, in seconds, ascending.
        end: end of the window, in seconds.
        count: number of times, at least 2.
    """
    first, last = times[0], times[-1]
    interval = (last - first) / (len(times) - 1) if len(times) > 1 else end - last
    if end - last > LONG_LAST_FRAME * interval:
        last = max(last, end - interval)
    step = (last - first) / (count - 1)
    return (*(first + step * index for index in range(count - 1)), last)


def frames_shown_at(times: Sequence[float], at: Sequence[float]) -> tuple[int, ...]:
    """Indices of the frames shown at given times: the latest frame at or before each.

    Args:
        times: presentation time of each frame, in seconds, ascending.
        at: times in seconds, none before the first frame.
    """
    tolerance = 1e-6  # seconds: samples fall on frame times, and rounding must not select the frame before
    return tuple(bisect_right(times, time + tolerance) - 1 for time in at)
