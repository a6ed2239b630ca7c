from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.video.timestamps import (
    ClockLimits,
    UncertainTimestamps,
    enforce_max_rate,
    recording_offsets,
    repair_timestamps,
)

pytestmark = pytest.mark.fast

CLOCK = ClockLimits(step=1, backward=10, forward=200, longest=10_000, shortest=1)


def joined(*recordings: list[int]) -> list[int]:
    timestamps = list(itertools.chain(*recordings))
    offsets = recording_offsets(timestamps, timestamps, [1] * len(timestamps), CLOCK, window=17)
    return [timestamp + offset for timestamp, offset in zip(timestamps, offsets, strict=True)]


@pytest.mark.parametrize("start", [0, 60, 5000, -5000])
def test_recording_continues_at_the_end_of_the_one_before(start: int) -> None:
    first, second = list(range(100)), [start + index for index in range(50)]
    assert joined(first, second) == list(range(150))


def test_recording_that_begins_out_of_order_continues_at_its_earliest_picture() -> None:
    assert joined([0, 3, 1, 2, *range(4, 100)], [5003, 5001, 5002, 5004])[100:] == [102, 100, 101, 103]


def test_long_step_is_no_jump_if_the_packet_has_that_duration() -> None:
    timestamps = [0, 1, 2, 1000, 1001]
    assert recording_offsets(timestamps, timestamps, [1, 1, 998, 1, 1], CLOCK, 1) == [0] * 5
    assert recording_offsets(timestamps, timestamps, [1, 1, 1, 1, 1], CLOCK, 1) == [0, 0, 0, -997, -997]


def test_step_above_the_longest_is_a_jump_whatever_the_packets_duration() -> None:
    timestamps = [0, 1, 2, 20_000, 20_001]
    assert recording_offsets(timestamps, timestamps, [1, 1, 19_998, 1, 1], CLOCK, 1) == [0, 0, 0, -19_997, -19_997]


def test_timestamps_above_the_maximum_rate_are_set_to_the_nominal_rate() -> None:
    limits = replace(CLOCK, shortest=90)
    assert enforce_max_rate([5, 6, 7], 3600, limits) == [5, 3605, 7205]
    assert enforce_max_rate([0, 90, 180], 3600, limits) == [0, 90, 180]
    assert enforce_max_rate([5], 3600, limits) == [5]
    with pytest.raises(UncertainTimestamps, match="closer together"):
        enforce_max_rate([5, 6, 7], None, limits)


def test_ascending_timestamps_are_kept() -> None:
    assert repair_timestamps([0, 1, 5, 6], [0, 1, 2, 3], 1) == [0, 1, 5, 6]


def test_pts_out_of_order_are_replaced_by_dts() -> None:
    assert repair_timestamps([1, 2, 4, 3, 5, 7, 6], [0, 1, 2, 3, 4, 5, 6], 1) == [0, 1, 2, 3, 4, 5, 6]


def test_pts_out_of_order_without_dts_are_sorted() -> None:
    assert repair_timestamps([1, 2, 4, 3, 5], [None] * 5, 1) == [1, 2, 3, 4, 5]


def test_overlapping_recording_continues_at_the_end_of_the_one_before() -> None:
    timestamps = [*range(0, 600, 10), *range(570, 1000, 10)]
    assert repair_timestamps(timestamps, [None] * len(timestamps), 10) == list(range(0, 10 * len(timestamps), 10))


def test_missing_and_equal_timestamps_are_interpolated() -> None:
    assert repair_timestamps([0, None, 20, 20, 40, None], [None] * 6, 10) == [0, 10, 20, 30, 40, 50]
    assert repair_timestamps([7, 7, 7, 7], [7, 7, 7, 7], 10) == [7, 17, 27, 37]


def test_constant_rate_continues_through_wrong_dts() -> None:
    decoding: list[int | None] = [10 * index for index in range(40)]
    decoding[20:25] = [180, 190, 200, 210, 220]
    assert repair_timestamps([None] * 40, decoding, 10) == [10 * index for index in range(40)]


@pytest.mark.parametrize(
    ("timestamps", "nominal"), [([0, 0, 0], None), ([None, None], 10), ([0, None, 300], 10), ([0, None, 2], 10)]
)
def test_uncertain_timestamps_are_refused(timestamps: list[int | None], nominal: int | None) -> None:
    with pytest.raises(UncertainTimestamps):
        repair_timestamps(timestamps, [None] * len(timestamps), nominal)


@given(st.lists(st.one_of(st.none(), st.integers(0, 500)), min_size=1, max_size=40), st.integers(1, 20))
def test_repaired_timestamps_ascend_or_are_refused(timestamps: list[int | None], nominal: int) -> None:
    try:
        rebuilt = repair_timestamps(timestamps, [None] * len(timestamps), nominal)
    except UncertainTimestamps:
        return
    assert len(rebuilt) == len(timestamps)
    assert all(before <= after for before, after in itertools.pairwise(rebuilt))
