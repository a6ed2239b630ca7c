import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.video.window import (
    MIN_WINDOW_FRAMES,
    MIN_WINDOW_SECONDS,
    WINDOWING_VERSION,
    Window,
    Windowing,
    split_into_windows,
)

pytestmark = pytest.mark.fast


def windows_of(frames: int, windowing: Windowing, fps: float = 25.0) -> list[Window]:
    return list(split_into_windows([index / fps for index in range(frames)], frames / fps, windowing))


@st.composite
def windowings(draw: st.DrawFn) -> Windowing:
    size = draw(st.integers(MIN_WINDOW_FRAMES, 400))
    return Windowing(size, draw(st.integers(MIN_WINDOW_FRAMES, size)))


@given(frames=st.integers(0, 3000), windowing=windowings())
def test_every_frame_belongs_to_exactly_one_window(frames: int, windowing: Windowing) -> None:
    windows = windows_of(frames, windowing)
    covered = [frame for window in windows for frame in range(window.start_frame, window.end_frame)]
    assert covered == (list(range(frames)) if frames >= MIN_WINDOW_FRAMES else [])


@given(frames=st.integers(MIN_WINDOW_FRAMES, 3000), windowing=windowings())
def test_windows_are_contiguous_and_numbered_from_zero(frames: int, windowing: Windowing) -> None:
    windows = windows_of(frames, windowing)
    assert [window.index for window in windows] == list(range(len(windows)))
    assert windows[0].start_seconds == 0
    assert windows[-1].end_seconds == frames / 25.0
    for one, other in itertools.pairwise(windows):
        assert one.end_seconds == other.start_seconds


@given(frames=st.integers(MIN_WINDOW_FRAMES, 3000), windowing=windowings())
def test_every_window_of_several_has_at_least_the_threshold(frames: int, windowing: Windowing) -> None:
    lengths = [window.end_frame - window.start_frame for window in windows_of(frames, windowing)]
    if len(lengths) > 1:
        assert min(lengths) >= windowing.remainder_threshold
    assert max(lengths) < windowing.size + windowing.remainder_threshold or len(lengths) == 1


@given(
    intervals=st.lists(st.floats(1e-3, 3.0), max_size=300),
    seconds=st.floats(MIN_WINDOW_SECONDS, 20.0),
)
def test_windows_by_seconds_cover_every_frame_once_and_have_the_minimum_number(
    intervals: list[float], seconds: float
) -> None:
    times = [0.0, *itertools.accumulate(intervals)]
    windows = list(split_into_windows(times, times[-1] + 0.04, Windowing(seconds=seconds)))
    covered = [frame for window in windows for frame in range(window.start_frame, window.end_frame)]
    assert covered == (list(range(len(times))) if len(times) >= MIN_WINDOW_FRAMES else [])
    assert all(window.end_frame - window.start_frame >= MIN_WINDOW_FRAMES for window in windows)


@given(frames=st.integers(MIN_WINDOW_FRAMES, 3000), seconds=st.sampled_from([0.2, 0.5, 1.0, 3.0, 10.24]))
def test_windows_by_seconds_begin_on_the_grid_and_the_last_has_at_least_half(frames: int, seconds: float) -> None:
    windows = windows_of(frames, Windowing(seconds=seconds))
    for window in windows:
        assert window.start_seconds == pytest.approx(window.index * seconds, abs=1 / 25)
    if len(windows) > 1:
        assert windows[-1].end_seconds - windows[-1].start_seconds >= seconds / 2


def test_video_of_variable_frame_rate_is_cut_by_time() -> None:
    times = [*(i / 60 for i in range(60)), *(1 + i / 6 for i in range(12))]  # 1 s at 60 fps, 2 s at 6
    windows = list(split_into_windows(times, 3.0, Windowing(seconds=1.0)))
    assert [(w.start_frame, w.end_frame) for w in windows] == [(0, 60), (60, 66), (66, 72)]


def test_window_with_too_few_frames_is_merged_with_the_next() -> None:
    times = [0.0, 0.1, 0.2, 0.3, 1.0, 1.5, 2.0, 2.1, 2.2, 2.3, 3.0, 3.9]
    windows = list(split_into_windows(times, 4.0, Windowing(seconds=1.0)))
    assert [(w.start_frame, w.end_frame) for w in windows] == [(0, 4), (4, 12)]


@pytest.mark.parametrize(
    ("frames", "fps", "seconds", "expected"),
    [
        (9, 5.0, 1.0, [(0, 5), (5, 9)]),  # the last window has the minimum number of frames
        (8, 5.0, 1.0, [(0, 8)]),
        (24, 8.0, 2.0, [(0, 16), (16, 24)]),  # the last window has exactly half of the seconds
        (23, 8.0, 2.0, [(0, 23)]),
    ],
)
def test_last_window_by_seconds_is_merged_below_its_limits(
    frames: int, fps: float, seconds: float, expected: list[tuple[int, int]]
) -> None:
    windows = windows_of(frames, Windowing(seconds=seconds), fps)
    assert [(window.start_frame, window.end_frame) for window in windows] == expected


PINNED = {
    1: {
        (600, Windowing()): [(0, 256), (256, 600)],
        (640, Windowing()): [(0, 256), (256, 512), (512, 640)],
        (23, Windowing(8, 4)): [(0, 8), (8, 16), (16, 23)],
        (19, Windowing(8, 4)): [(0, 8), (8, 19)],
        (112, Windowing(seconds=1.5)): [(0, 38), (38, 75), (75, 112)],
        (93, Windowing(seconds=1.5)): [(0, 38), (38, 93)],
    }
}
"""Frames of the windows of clips of 25 fps, by version of the algorithm, number of frames, and windowing."""


def test_windows_are_those_of_the_windowing_version() -> None:
    # If this fails, clips are cut differently: increase WINDOWING_VERSION and pin the windows of the new version.
    for (frames, windowing), expected in PINNED[WINDOWING_VERSION].items():
        windows = windows_of(frames, windowing)
        assert [(window.start_frame, window.end_frame) for window in windows] == expected


def test_default_windows_are_those_of_the_reference() -> None:
    lengths = {
        frames: [w.end_frame - w.start_frame for w in windows_of(frames, Windowing())] for frames in (3, 383, 384)
    }
    assert lengths == {3: [], 383: [383], 384: [256, 128]}


@pytest.mark.parametrize(("size", "threshold"), [(3, 3), (256, 257), (256, 3)])
def test_sizes_out_of_range_are_refused(size: int, threshold: int) -> None:
    with pytest.raises(ValueError, match="give"):
        Windowing(size, threshold)


def test_minimum_of_seconds_is_accepted() -> None:
    assert Windowing(seconds=0.1).seconds == 0.1


@pytest.mark.parametrize("seconds", [0.0, -1.0, 0.01, float("inf"), float("nan")])
def test_seconds_out_of_range_are_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="give a number from"):
        Windowing(seconds=seconds)
