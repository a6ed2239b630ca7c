import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.clips.plan import PacketFacts, Plan, Step, lean_plan, whole_plan

pytestmark = pytest.mark.fast


def packets(*groups: Sequence[int | None]) -> list[PacketFacts]:
    """Stamps in decoding order, each group's first a key frame."""
    return [PacketFacts(pts, index == 0) for group in groups for index, pts in enumerate(group)]


def letters(plan: Plan) -> str:
    return "".join({Step.DECODE: "D", Step.REFER: "r", Step.SKIP: "s", Step.DROP: "."}[step] for step in plan.steps)


CLOSED = packets([0, 3, 1, 2], [4, 7, 5, 6], [8, 11, 9, 10])
OPEN = packets([0, 3, 1, 2], [6, 4, 5, 9, 7, 8], [12, 10, 11])
"""Frames 4 and 5 lead the second group, 10 and 11 the third."""


@pytest.mark.parametrize(
    ("wanted", "steps"),
    [
        ({0}, "D..........."),
        ({2}, "DrrD........"),
        ({7}, "....DD......"),
        ({1, 10}, "DrD.....DrrD"),
        ({3, 4}, "DD..D......."),
    ],
)
def test_a_group_is_decoded_from_its_key_frame_to_its_last_wanted_frame(wanted: set[int], steps: str) -> None:
    assert letters(lean_plan(CLOSED, wanted)) == steps


@pytest.mark.parametrize(
    ("wanted", "steps"),
    [
        ({4}, "DrrrDD......."),
        ({9}, "....DrrD....."),
        ({10}, "....DrrrrrDD."),
        ({5, 11}, "DrrrDrDrrrDrD"),
    ],
)
def test_a_group_is_decoded_to_its_end_where_leading_frames_of_the_next_are_wanted(
    wanted: set[int], steps: str
) -> None:
    assert letters(lean_plan(OPEN, wanted)) == steps


def test_a_frame_that_none_is_predicted_from_is_skipped_without_beginning_anew() -> None:
    clip = [
        PacketFacts(0, True),
        PacketFacts(2, False),
        PacketFacts(1, False, is_referred=False),
        PacketFacts(3, False),
    ]
    assert letters(lean_plan(clip, {3})) == "DrsD"
    assert letters(lean_plan(clip, {1})) == "DrD."


def test_decoding_begins_anew_after_a_gap_only() -> None:
    assert lean_plan(CLOSED, {2, 7, 10}).entries == {8}


def test_what_comes_before_the_first_key_frame_is_a_group_too() -> None:
    headless = [PacketFacts(0, False), PacketFacts(1, False), *packets([2, 3])]
    assert letters(lean_plan(headless, {1})) == "DD.."


def test_packets_without_a_stamp_are_never_wanted() -> None:
    assert letters(lean_plan(packets([None, 0, 1], [None, 2]), {2})) == "...DD"


def test_nothing_is_left_out_of_the_whole_plan_up_to_the_last_wanted_packet() -> None:
    plan = whole_plan(CLOSED, {1, 5})
    assert (letters(plan), plan.entries) == ("DDDDDDD.....", frozenset())


@given(
    groups=st.lists(st.integers(1, 9), min_size=1, max_size=9).flatmap(
        lambda sizes: st.tuples(st.just(sizes), st.permutations(range(sum(sizes))))
    ),
    wanted=st.sets(st.integers(0, 80)),
)
def test_each_wanted_frame_is_decoded_and_all_that_its_group_has_before_it(
    groups: tuple[list[int], list[int]], wanted: set[int]
) -> None:
    sizes, stamps = groups
    starts = list(itertools.accumulate(sizes, initial=0))
    clip = packets(*(stamps[start:end] for start, end in itertools.pairwise(starts)))
    plan = lean_plan(clip, wanted)
    for start, end in itertools.pairwise(starts):
        steps = plan.steps[start:end]
        sent = len([step for step in steps if step is not Step.DROP])
        assert Step.DROP not in steps[:sent]
        assert all(
            (step is Step.DECODE) == (clip[start + i].pts in wanted) for i, step in enumerate(steps) if 0 < i < sent
        )
        assert not any(clip[start + i].pts in wanted for i in range(sent, end - start))
