import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.clips.window import MIN_WINDOW_FRAMES, Window, Windowing, split

pytestmark = pytest.mark.fast


def windows_of(frames: int, windowing: Windowing, fps: float = 25.0) -> list[Window]:
    return list(split([index / fps for index in range(frames)], frames / fps, windowing))


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
def test_windows_adjoin_in_time_and_are_numbered_from_zero(frames: int, windowing: Windowing) -> None:
    windows = windows_of(frames, windowing)
    assert [window.index for window in windows] == list(range(len(windows)))
    assert windows[0].start_seconds == 0
    assert windows[-1].end_seconds == frames / 25.0
    for one, other in itertools.pairwise(windows):
        assert one.end_seconds == other.start_seconds


@given(frames=st.integers(MIN_WINDOW_FRAMES, 3000), windowing=windowings())
def test_no_window_but_a_whole_clip_is_shorter_than_the_threshold(frames: int, windowing: Windowing) -> None:
    lengths = [window.end_frame - window.start_frame for window in windows_of(frames, windowing)]
    if len(lengths) > 1:
        assert min(lengths) >= windowing.remainder_threshold
    assert max(lengths) < windowing.size + windowing.remainder_threshold or len(lengths) == 1


def test_default_windows_are_the_references() -> None:
    lengths = {
        frames: [w.end_frame - w.start_frame for w in windows_of(frames, Windowing())] for frames in (3, 383, 384)
    }
    assert lengths == {3: [], 383: [383], 384: [256, 128]}


@pytest.mark.parametrize(("size", "threshold"), [(3, 3), (256, 257), (256, 3)])
def test_sizes_out_of_range_are_refused(size: int, threshold: int) -> None:
    with pytest.raises(ValueError, match="give"):
        Windowing(size, threshold)
