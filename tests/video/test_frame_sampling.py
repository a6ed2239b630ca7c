import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.video.frame_sampling import FrameSampling, frame_count, frames_shown_at, sample_times

pytestmark = pytest.mark.fast


@given(
    seconds=st.floats(0.01, 10_000),
    available=st.integers(4, 100_000),
    minimum=st.integers(1, 20),
    extra=st.integers(0, 400),
    fps=st.floats(0.1, 60),
)
def test_frame_count_is_even_within_limits_and_available(
    seconds: float, available: int, minimum: int, extra: int, fps: float
) -> None:
    sampling = FrameSampling(fps, 2 * minimum, 2 * (minimum + extra))
    count = frame_count(seconds, available, sampling)
    assert count % 2 == 0
    assert 2 <= count <= min(available, sampling.max_frames)
    assert count >= min(sampling.min_frames, available - 1)


def test_default_sampling_is_two_frames_per_second() -> None:
    assert frame_count(10.0, 250, FrameSampling()) == 20


def test_default_limits_are_4_and_768_frames() -> None:
    assert frame_count(0.1, 10_000, FrameSampling()) == 4
    assert frame_count(1000.0, 10_000, FrameSampling()) == 768


def test_frame_count_with_odd_limits_is_even() -> None:
    assert frame_count(1.0, 7, FrameSampling(fps=2, min_frames=5, max_frames=9)) == 4


@pytest.mark.parametrize(
    ("seconds", "count"), [(9.4, 18), (9.5, 20), (9.9, 20), (10.4, 20), (10.5, 20), (10.6, 22), (128.5, 256)]
)
def test_frame_count_is_rounded_to_an_even_number_as_in_the_reference(seconds: float, count: int) -> None:
    # NeMo Curator's round_by_factor rounds halves to the nearest multiple of four: 19 to 20, 21 to 20.
    assert frame_count(seconds, 10_000, FrameSampling()) == count


@given(first=st.floats(0, 100), length=st.floats(0.1, 100), count=st.integers(2, 768))
def test_sample_times_are_evenly_spaced_from_the_first_frame_to_the_last(
    first: float, length: float, count: int
) -> None:
    times = [first, first + length]
    found = sample_times(times, first + 2 * length, count)
    assert len(found) == count
    assert found[0] == first
    assert found[-1] == first + length
    steps = [b - a for a, b in itertools.pairwise(found)]
    assert max(steps) - min(steps) < 1e-6


def test_video_of_variable_frame_rate_is_sampled_by_time() -> None:
    dense_then_sparse = [i / 60 for i in range(60)] + [1 + i / 6 for i in range(12)]  # 1 s at 60 fps, 2 s at 6
    chosen = frames_shown_at(dense_then_sparse, sample_times(dense_then_sparse, 3.0, 6))
    shown = [dense_then_sparse[index] for index in chosen]
    assert shown == pytest.approx([i * dense_then_sparse[-1] / 5 for i in range(6)], abs=1 / 6)


def test_frame_is_shown_until_the_next() -> None:
    assert frames_shown_at([0.0, 0.1, 0.2, 3.0], [0.0, 1.0, 2.0, 3.0]) == (0, 2, 2, 3)


def test_long_last_frame_is_sampled_for_its_full_duration() -> None:
    times = [0.0, 0.1, 0.2, 0.3]
    assert sample_times(times, 10.3, 3) == pytest.approx((0.0, 5.1, 10.2))
    assert frames_shown_at(times, sample_times(times, 10.3, 3)) == (0, 3, 3)


@pytest.mark.parametrize(("end", "last"), [(5.49, 5.3), (5.51, 5.41)])
def test_last_frame_is_long_from_two_average_intervals(end: float, last: float) -> None:
    assert sample_times([5.0, 5.1, 5.2, 5.3], end, 3) == pytest.approx((5.0, (5.0 + last) / 2, last))


def test_long_last_of_two_frames_is_sampled_for_its_full_duration() -> None:
    assert sample_times([0.0, 0.1], 10.1, 3) == pytest.approx((0.0, 5.0, 10.0))


def test_single_frame_is_sampled_at_its_own_time() -> None:
    assert sample_times([5.0], 9.0, 4) == (5.0,) * 4
    assert frames_shown_at([5.0], sample_times([5.0], 9.0, 4)) == (0,) * 4


def test_last_sample_time_is_that_of_an_ordinary_last_frame() -> None:
    assert sample_times([0.0, 0.1, 0.2, 0.3], 0.4, 4)[-1] == 0.3


@pytest.mark.parametrize("bad", [{"fps": 0}, {"min_frames": 1}, {"min_frames": 8, "max_frames": 6}])
def test_values_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="give"):
        FrameSampling(**bad)  # type: ignore[arg-type]
