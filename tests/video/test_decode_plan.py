from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.video.decode_plan import StreamStructure, decode_ranges, with_second_fields
from caption_assets.video.payload import PacketContent
from caption_assets.video.timeline import MISSING

pytestmark = pytest.mark.fast


def structure(*groups: Sequence[int | None], contents: Sequence[PacketContent] = ()) -> StreamStructure:
    """A stream of groups of pictures, given their timestamps in decoding order. Each group begins with a keyframe."""
    starts = list(itertools.accumulate(map(len, groups), initial=0))
    timestamps = [MISSING if timestamp is None else timestamp for group in groups for timestamp in group]
    return StreamStructure(starts[-1], starts[:-1], timestamps, contents or [PacketContent.PICTURE] * starts[-1])


def planned(clip: StreamStructure, wanted: set[int]) -> list[tuple[int, int]]:
    """The ranges of packets to decode for the pictures with these timestamps."""
    numbers = {clip.timestamps.index(timestamp) for timestamp in wanted}
    return [(run.start, run.stop) for run in decode_ranges(clip, numbers)]


CLOSED = structure([0, 3, 1, 2], [4, 7, 5, 6], [8, 11, 9, 10])
OPEN = structure([0, 3, 1, 2], [6, 4, 5, 9, 7, 8], [12, 10, 11])
"""Pictures 4 and 5 lead the second group, 10 and 11 the third."""


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({0}, [(0, 1)]),
        ({2}, [(0, 4)]),
        ({7}, [(4, 6)]),
        ({1, 10}, [(0, 3), (8, 12)]),
        ({3, 4}, [(0, 2), (4, 5)]),
        ({2, 4}, [(0, 5)]),
    ],
)
def test_group_is_decoded_from_its_keyframe_to_its_last_wanted_picture(
    wanted: set[int], expected: list[tuple[int, int]]
) -> None:
    assert planned(CLOSED, wanted) == expected


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [({4}, [(0, 6)]), ({9}, [(4, 8)]), ({10}, [(4, 12)]), ({5, 11}, [(0, 13)])],
)
def test_group_is_decoded_to_its_end_if_leading_pictures_of_the_next_are_wanted(
    wanted: set[int], expected: list[tuple[int, int]]
) -> None:
    assert planned(OPEN, wanted) == expected


def test_keyframe_with_its_leading_pictures_is_decoded_from_the_group_before() -> None:
    assert planned(OPEN, {4, 5, 6}) == [(0, 7)]


def test_first_packet_begins_a_group_even_if_it_is_no_keyframe() -> None:
    cut = StreamStructure(4, [2], [0, 1, 2, 3], [PacketContent.PICTURE] * 4)
    assert planned(cut, {1}) == [(0, 2)]
    assert planned(StreamStructure(4, [], [0, 1, 2, 3], [PacketContent.PICTURE] * 4), {3}) == [(0, 4)]


def test_group_behind_packets_without_a_keyframe_is_decoded_from_its_keyframe() -> None:
    cut = StreamStructure(8, [2, 5], [0, 1, 2, 3, 4, 7, 5, 6], [PacketContent.PICTURE] * 8)
    assert planned(cut, {3}) == [(2, 4)]
    assert planned(cut, {5}) == [(2, 7)]  # it leads the group of packet 5


def test_picture_without_a_timestamp_leads_no_group() -> None:
    assert [(run.start, run.stop) for run in decode_ranges(structure([0, 1], [2, None]), {3})] == [(2, 4)]


def test_second_field_is_decoded_with_its_first() -> None:
    fields = structure([0, None, 1, None], contents=[PacketContent.PICTURE, PacketContent.NO_PICTURE] * 2)
    assert with_second_fields(fields, {0}) == {0, 1}
    assert with_second_fields(fields, {2}) == {2, 3}


@given(
    groups=st.lists(st.integers(1, 9), min_size=1, max_size=9).flatmap(
        lambda sizes: st.tuples(st.just(sizes), st.permutations(range(sum(sizes))))
    ),
    data=st.data(),
)
def test_wanted_packet_is_in_a_range_that_begins_at_its_keyframe_or_before(
    groups: tuple[list[int], list[int]], data: st.DataObject
) -> None:
    sizes, timestamps = groups
    starts = list(itertools.accumulate(sizes, initial=0))
    clip = structure(*(timestamps[start:end] for start, end in itertools.pairwise(starts)))
    wanted = data.draw(st.sets(st.integers(0, clip.packets - 1)))
    found = decode_ranges(clip, wanted)
    assert all(before.stop < after.start for before, after in itertools.pairwise(found))
    assert all(run.start in starts for run in found)
    for number in wanted:
        [run] = [run for run in found if number in run]
        assert run.start <= max(start for start in starts if start <= number)
