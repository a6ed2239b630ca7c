import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.clips.decode import shown_at
from caption_assets.clips.sampling import Sampling, frame_count, frame_times

pytestmark = pytest.mark.fast


@given(
    seconds=st.floats(0.01, 10_000),
    available=st.integers(4, 100_000),
    least=st.integers(1, 20),
    extra=st.integers(0, 400),
    fps=st.floats(0.1, 60),
)
def test_frame_count_is_even_within_limits_and_available(
    seconds: float, available: int, least: int, extra: int, fps: float
) -> None:
    sampling = Sampling(fps, 2 * least, 2 * (least + extra))
    count = frame_count(seconds, available, sampling)
    assert count % 2 == 0
    assert 2 <= count <= min(available, sampling.max_frames)
    assert count >= min(sampling.min_frames, available - 1)


def test_two_frames_a_second_by_default() -> None:
    assert frame_count(10.0, 250, Sampling()) == 20


def test_odd_limits_never_give_an_odd_count() -> None:
    assert frame_count(1.0, 7, Sampling(fps=2, min_frames=5, max_frames=9)) == 4


@given(first=st.floats(0, 100), length=st.floats(0.1, 100), count=st.integers(2, 768))
def test_times_are_even_from_the_first_frame_to_the_last(first: float, length: float, count: int) -> None:
    times = frame_times(first, first + length, count)
    assert len(times) == count
    assert times[0] == first
    assert times[-1] == first + length
    steps = [b - a for a, b in itertools.pairwise(times)]
    assert max(steps) - min(steps) < 1e-6


def test_a_variable_rate_is_sampled_by_time_not_by_index() -> None:
    dense_then_sparse = [i / 60 for i in range(60)] + [1 + i / 6 for i in range(12)]  # 1 s at 60 fps, 2 s at 6
    shown = [dense_then_sparse[i] for i in shown_at(dense_then_sparse, 6)]
    assert shown == pytest.approx([i * dense_then_sparse[-1] / 5 for i in range(6)], abs=1 / 6)


def test_a_frame_stays_on_show_until_the_next() -> None:
    assert shown_at([0.0, 0.1, 0.2, 3.0], 4) == (0, 2, 2, 3)


@pytest.mark.parametrize("bad", [{"fps": 0}, {"min_frames": 1}, {"min_frames": 8, "max_frames": 6}])
def test_limits_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="give"):
        Sampling(**bad)  # type: ignore[arg-type]
