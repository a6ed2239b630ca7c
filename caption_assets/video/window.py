"""Windows: the runs of consecutive frames into which a clip is cut, each with a caption of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

WINDOWING_VERSION = 1
"""Version of the algorithm below. Increase it with every change that cuts any clip differently: this marks manifests
stale."""
MIN_WINDOW_FRAMES = 4
"""Minimum number of frames of a window, as in NeMo Curator. A shorter clip has no window."""
MIN_WINDOW_SECONDS = 0.1
"""Minimum of ``Windowing.seconds``: four frames of ordinary video take longer."""


@dataclass(frozen=True, slots=True)
class Windowing:
    """Sizes of windows. The defaults are those of NeMo Curator: 256 frames, and at least 128 in the last window.

    Raises:
        ValueError: if a value is out of its range.
    """

    size: int = 256
    """Frames in a window."""
    remainder_threshold: int = 128
    """Minimum number of frames in the last window. A shorter one is merged into the window before it."""
    seconds: float | None = None
    """Length of a window, in seconds, in place of ``size``. A last window shorter than half of it is merged into the
    window before it."""

    def __post_init__(self) -> None:
        if self.size < MIN_WINDOW_FRAMES:
            raise ValueError(f"the window size is {self.size} frames: give at least {MIN_WINDOW_FRAMES}")
        if not MIN_WINDOW_FRAMES <= self.remainder_threshold <= self.size:
            raise ValueError(
                f"the remainder threshold is {self.remainder_threshold} frames: give {MIN_WINDOW_FRAMES} to the "
                f"window size, {self.size}"
            )
        if self.seconds is not None and not MIN_WINDOW_SECONDS <= self.seconds < math.inf:
            raise ValueError(f"windows are {self.seconds} seconds long: give a number from {MIN_WINDOW_SECONDS}")


@dataclass(frozen=True, slots=True)
class Window:
    """A run of consecutive frames of one clip."""

    index: int
    """Number of the window within its clip, from 0."""
    start_frame: int
    """First frame, in presentation order."""
    end_frame: int
    """One past the last frame."""
    start_seconds: float
    """Presentation time of the first frame, from the beginning of the clip."""
    end_seconds: float
    """End of the last frame's presentation, from the beginning of the clip."""


def split_into_windows(times: Sequence[float], end_seconds: float, windowing: Windowing) -> Iterator[Window]:
    """Cut a clip into windows so that every frame belongs to exactly one.

    Args:
        times: presentation time of each frame, in seconds, ascending.
        end_seconds: end of the last frame's presentation.
        windowing: sizes.

    Yields:
        The windows in order; none if the clip has fewer than ``MIN_WINDOW_FRAMES`` frames.
    """
    total = len(times)
    if total < MIN_WINDOW_FRAMES:
        return
    if windowing.seconds is None:
        starts = _starts_by_frames(total, windowing)
    else:
        starts = _starts_by_seconds(times, end_seconds, windowing.seconds)
    for index, (start, end) in enumerate(zip(starts, [*starts[1:], total], strict=True)):
        yield Window(index, start, end, times[start], times[end] if end < total else end_seconds)


def _starts_by_frames(total: int, windowing: Windowing) -> list[int]:
    starts = list(range(0, total, windowing.size))
    if len(starts) > 1 and total - starts[-1] < windowing.remainder_threshold:
        starts.pop()
    return starts


def _starts_by_seconds(times: Sequence[float], end_seconds: float, seconds: float) -> list[int]:
    """The first frame of each interval of ``seconds``, where the window before it has enough frames."""
    tolerance = 1e-6  # seconds: despite rounding, a frame on the border between two intervals begins a window
    starts = [0]
    interval = 0
    for index, time in enumerate(times):
        if (reached := int((time + tolerance) / seconds)) > interval:
            interval = reached
            if index - starts[-1] >= MIN_WINDOW_FRAMES:
                starts.append(index)
    is_short = len(times) - starts[-1] < MIN_WINDOW_FRAMES or end_seconds - times[starts[-1]] < seconds / 2
    if len(starts) > 1 and is_short:
        starts.pop()
    return starts
