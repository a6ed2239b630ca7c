from __future__ import annotations

import itertools
from collections.abc import Sequence
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


def jumps(clock: Sequence[int | None], *, durations: int = 0, limits: ClockLimits = CLOCK, window: int = 1) -> bool:
    """Whether the last timestamp begins another recording."""
    return recording_offsets(clock, clock, [durations] * len(clock), limits, window)[-1] != 0


@pytest.mark.parametrize(
    ("last", "is_jump"), [(100 - 10, False), (100 - 11, True), (100 + 200 + 1, False), (100 + 200 + 2, True)]
)
def test_step_beyond_the_limits_is_a_jump(last: int, is_jump: bool) -> None:
    assert jumps([100, last]) is is_jump
    assert jumps([100, None, last]) is is_jump


@pytest.mark.parametrize(
    ("durations", "last", "is_jump"),
    [(0, 205, False), (0, 206, True), (3, 205, False), (3, 206, True), (30, 230, False), (30, 231, True)],
)
def test_forward_limit_counts_from_the_longer_of_duration_and_interval(
    durations: int, last: int, is_jump: bool
) -> None:
    assert jumps([0, last], durations=durations, limits=replace(CLOCK, step=5)) is is_jump


@pytest.mark.parametrize(("last", "is_jump"), [(10_000, False), (10_001, True)])
def test_forward_limit_is_at_most_the_longest(last: int, is_jump: bool) -> None:
    assert jumps([0, last], durations=20_000) is is_jump


@pytest.mark.parametrize(
    ("last", "is_jump"), [(10, False), (9, True), (60 + 201, False), (60 + 202, True)], ids=["10", "9", "261", "262"]
)
def test_jump_is_a_step_beyond_all_timestamps_of_the_window(last: int, is_jump: bool) -> None:
    assert jumps([0, 20, 60, 40, last], window=3) is is_jump


@pytest.mark.parametrize(("window", "is_jump"), [(1, True), (2, True), (3, False)])
def test_timestamps_before_the_window_do_not_count(window: int, is_jump: bool) -> None:
    assert jumps([0, 100, 200, 150, 95], window=window) is is_jump


def test_window_of_two_packets_compares_with_both() -> None:
    assert not jumps([0, 20, 40, 15], window=2)


def test_jump_is_detected_within_the_recording_alone() -> None:
    timestamps = [0, 1, 2, 1000, 1001, 990, 991]
    assert recording_offsets(timestamps, timestamps, [1] * 7, CLOCK, window=3) == [0] * 3 + [3 - 990] * 4


def test_recording_shorter_than_the_reordering_continues_before_the_next() -> None:
    assert joined(list(range(100)), list(range(5000, 5005)), list(range(10))) == list(range(115))


def test_recording_without_timestamps_has_no_offset() -> None:
    assert recording_offsets([None, None], [None, None], [0, 0], CLOCK, 1) == [0, 0]


LIMITS = replace(CLOCK, shortest=90)


@pytest.mark.parametrize(
    ("pts", "nominal", "expected"),
    [
        ([5, 6, 7], 3600, [5, 3605, 7205]),
        ([0, 90, 179], 3600, [0, 3600, 7200]),
        ([0, 90, 180], 3600, [0, 90, 180]),
        ([0, 1, 180], 3600, [0, 1, 180]),  # the average counts
        ([5, 94], 90, [5, 95]),
        ([5], 3600, [5]),
        ([], None, []),
    ],
)
def test_timestamps_above_the_maximum_rate_are_set_to_the_nominal_rate(
    pts: list[int], nominal: int | None, expected: list[int]
) -> None:
    assert enforce_max_rate(pts, nominal, LIMITS) == expected


@pytest.mark.parametrize("nominal", [None, 89])
def test_timestamps_above_the_maximum_rate_without_a_possible_rate_are_refused(nominal: int | None) -> None:
    with pytest.raises(UncertainTimestamps, match="closer together"):
        enforce_max_rate([5, 6, 7], nominal, LIMITS)


def test_ascending_timestamps_are_kept() -> None:
    assert repair_timestamps([0, 1, 5, 6], [0, 1, 2, 3], 1) == [0, 1, 5, 6]


def test_pts_out_of_order_are_replaced_by_dts() -> None:
    assert repair_timestamps([1, 2, 4, 3, 5, 7, 6], [0, 1, 2, 3, 4, 5, 6], 1) == [0, 1, 2, 3, 4, 5, 6]


def test_pts_out_of_order_without_dts_are_sorted() -> None:
    assert repair_timestamps([1, 2, 4, 3, 5], [None] * 5, 1) == [1, 2, 3, 4, 5]


def test_overlapping_recording_continues_at_the_end_of_the_one_before() -> None:
    timestamps = [*range(0, 600, 10), *range(570, 1000, 10)]
    assert repair_timestamps(timestamps, [None] * len(timestamps), 10) == list(range(0, 10 * len(timestamps), 10))


@pytest.mark.parametrize(("lengths", "continues"), [((33, 33, 34), True), ((33, 33, 33), False)])
def test_recordings_overlap_only_if_they_have_50_pictures_on_average(lengths: tuple[int, ...], continues: bool) -> None:
    timestamps, start = [], 0
    for length in lengths:
        timestamps += [start + 10 * index for index in range(length)]
        start = timestamps[-1] - 25  # no two are equal
    expected = list(range(0, 10 * sum(lengths), 10)) if continues else sorted(timestamps)
    assert repair_timestamps(timestamps, [None] * len(timestamps), 10) == expected


def test_equal_timestamps_of_overlapping_recordings_continue_one_interval_later() -> None:
    timestamps = [*range(0, 300, 10), *range(290, 590, 10)]
    assert repair_timestamps(timestamps, [None] * 60, 10) == list(range(0, 600, 10))


@pytest.mark.parametrize(
    "dts",
    [
        [100, None, 120, 130, None],
        [100, 110, 125, 131, 140, 150, 165, 173, 180, None],
        [110, 110, 120, 130, 140, None],  # the first may differ by one interval
        [100, 110, 120, 130, 150, None],  # the last may differ by one interval
        [100, 110, 120, 130, 140 + 160, 150, None],  # the others may differ by 16 intervals, as decoding order may
        [100, 110 - 160, 120, 130, 140, 150, None],
        [100, 111, 120, 135, None],  # half of them keep the rate
    ],
)
def test_constant_rate_of_most_dts_is_kept(dts: list[int | None]) -> None:
    assert repair_timestamps([None] * len(dts), dts, 10) == [100 + 10 * index for index in range(len(dts))]


@pytest.mark.parametrize(
    "dts",
    [
        [111, 110, 120, 130, 140, None],
        [89, 110, 120, 130, 140, None],
        [100, 110, 120, 130, 151, None],
        [100, 110, 120, 130, 129, None],
        [100, 110, 120, 130, 140 + 161, 150, None],
        [100, 110 - 161, 120, 130, 140, 150, None],
        [100, 111, 122, 133, 140, None],
        [None, None],
    ],
)
def test_rate_that_dts_do_not_keep_is_refused(dts: list[int | None]) -> None:
    with pytest.raises(UncertainTimestamps):
        repair_timestamps([None] * len(dts), dts, 10)


@pytest.mark.parametrize(
    ("timestamps", "expected"),
    [
        ([0, None, 8], [0, 4, 8]),
        ([0, None, 50], [0, 25, 50]),
        ([0, None, None, 29], [0, 10, 19, 29]),
        ([None, None, 70, 80, None, None], [50, 60, 70, 80, 90, 100]),
        ([0, 10, 500, None, 520], [0, 10, 500, 510, 520]),  # a still before pictures without timestamps
        ([0, 10, 90, 20, 30, None], [0, 10, 15, 20, 30, 40]),  # 90 is out of order
        ([0, 10, 20, 5, 30, None], [0, 10, 20, 25, 30, 40]),  # 5 is out of order
        ([0, 20, 20, 30, None], [0, 20, 25, 30, 40]),
        ([0, 10, 10, 30], [0, 10, 20, 30]),
    ],
)
def test_missing_timestamps_are_interpolated_within_the_range_of_intervals(
    timestamps: list[int | None], expected: list[int]
) -> None:
    assert repair_timestamps(timestamps, [None] * len(timestamps), 10) == expected


@pytest.mark.parametrize("last", [7, 51])
def test_missing_timestamps_outside_the_range_of_intervals_are_refused(last: int) -> None:
    with pytest.raises(UncertainTimestamps, match=f"2 intervals of {last / 20:.2f} times the nominal"):
        repair_timestamps([0, None, last], [None] * 3, 10)


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
