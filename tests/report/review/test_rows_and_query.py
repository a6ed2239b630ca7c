from __future__ import annotations

from pathlib import Path

import pytest

from caption_assets.report.review.query import Order, QueryError, ReviewQuery, select
from caption_assets.report.review.rows import Kind, ReviewRow, State
from caption_assets.store.corrections import Correction, Decision
from caption_assets.store.root import Root
from caption_assets.store.tables import Status
from tests.report.review.desks import rows_of
from tests.report.windows import SHARD, broken, captioned, failed, four_captions, publish, publish_four, window
from tests.stages import STAGE1, STAGE2

pytestmark = pytest.mark.fast

CLIPS = [window(f"{number}.mp4") for number in range(5)]
TEXTS = ["A red car turns.", "Rain.", "A man in a red coat walks along a street.", "A dog."]


@pytest.fixture
def rows(tmp_path: Path) -> list[ReviewRow]:
    """Five windows with two stages, of which the last failed in stage 2; and an unreadable clip."""
    root = Root.open(str(tmp_path))
    stage1 = [captioned(clip, "A scene.") for clip in CLIPS]
    flags = [(), ("cut_off",), (), ("cut_off", "repetition")]
    stage2 = [captioned(clip, text, flags=found) for clip, text, found in zip(CLIPS, TEXTS, flags, strict=False)]
    last = broken("broken.mp4")
    publish(root, [*CLIPS, last], [*stage1, failed(last)], [*stage2, failed(CLIPS[4]), failed(last)])
    return rows_of(root, stages=[STAGE1.name, STAGE2.name])


def names(rows: list[ReviewRow], query: str = "", **states: State) -> list[str]:
    """Stage-2 clips that a query finds."""
    parameters = dict(part.split("=") for part in query.split("&")) if query else {}
    found = select(rows, ReviewQuery.parse({"stage": STAGE2.name, **parameters}), lambda row: state(row, states))
    return [row.window.clip_key.removesuffix(".mp4") for row in found.found]


def state(row: ReviewRow, states: dict[str, State]) -> State:
    return states.get(f"clip{row.window.clip_key[0]}", State.UNDECIDED)


def test_each_window_and_stage_is_a_row_and_unreadable_clips_are_none(rows: list[ReviewRow]) -> None:
    assert [(row.window.clip_key, row.stage) for row in rows[:3]] == [
        ("0.mp4", STAGE1.name),
        ("0.mp4", STAGE2.name),
        ("1.mp4", STAGE1.name),
    ]
    assert [row.number for row in rows] == list(range(10))
    assert rows[1].words == 4


def test_kinds_and_the_windows_lowest_score_are_known(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path))
    publish_four(root, CLIPS[:1])
    found = {row.stage: row for row in rows_of(root)}
    assert {stage: row.kind for stage, row in found.items()} == {
        "short": Kind.TEXT,
        "dense_captions": Kind.TEXT,
        "attributes": Kind.JSON,
        "alignment": Kind.CHOICE,
    }
    assert {row.score for row in found.values()} == {0.9}
    assert found["alignment"].words == 0


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", "01234"),
        ("search=RED a", "02"),
        ("search=4.mp4", "4"),
        ("search=crashed", "4"),
        ("flag=repetition", "3"),
        ("status=failed", "4"),
        ("min_words=2&max_words=4", "03"),
        ("shard=another", ""),
        ("score_below=1", ""),
        ("order=shortest", "41302"),
        ("order=longest", "20314"),
        ("order=flags", "31024"),
        ("order=status", "40123"),
        ("order=worst", "43102"),
        ("order=worst&sample=2", "43"),
        ("order=worst&sample=3&search=rain", "1"),
    ],
)
def test_query_filters_and_orders(rows: list[ReviewRow], query: str, found: str) -> None:
    assert "".join(names(rows, query)) == found


def test_score_orders_and_filters(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path))
    publish_four(root, CLIPS[:1], alignment=captioned(CLIPS[0], "no", probabilities={"yes": 0.2, "no": 0.8}))
    [low] = [row for row in rows_of(root) if row.stage == "short"]
    assert low.score == 0.2
    assert ReviewQuery.parse({"score_below": "0.3"}).takes(low)
    assert not ReviewQuery.parse({"score_below": "0.2"}).takes(low)
    assert four_captions(CLIPS[0])["alignment"].probabilities == {"yes": 0.9, "no": 0.1}


def test_random_order_depends_on_the_seed_alone(rows: list[ReviewRow]) -> None:
    first = names(rows, "order=random&seed=1")
    assert names(list(reversed(rows)), "order=random&seed=1") == first
    assert sorted(first) == list("01234")
    assert any(names(rows, f"order=random&seed={seed}") != first for seed in range(2, 6))


def test_corrections_filter_within_a_sample_that_stays_the_same(rows: list[ReviewRow]) -> None:
    states = {"clip4": State.ACCEPTED, "clip3": State.OUTDATED, "clip0": State.REJECTED}
    assert "".join(names(rows, "order=worst&sample=3&correction=open", **states)) == "31"
    assert "".join(names(rows, "correction=rejected", **states)) == "0"
    assert "".join(names(rows, "order=correction", **states)) == "12403"


def test_progress_counts_the_sample(rows: list[ReviewRow]) -> None:
    query = ReviewQuery(stage=STAGE2.name, order=Order.WORST, sample=3, correction=State.ACCEPTED)
    found = select(rows, query, lambda row: state(row, {"clip4": State.ACCEPTED}))
    assert found.states == {State.ACCEPTED: 1, State.UNDECIDED: 2}
    assert len(found.sample) == 3


def test_place_of_a_row_that_was_decided_and_is_no_longer_found(rows: list[ReviewRow]) -> None:
    query = ReviewQuery(stage=STAGE2.name, correction=State.UNDECIDED)
    found = select(rows, query, lambda row: state(row, {"clip1": State.ACCEPTED}))
    ids = [row.id for row in rows if row.stage == STAGE2.name]
    assert [found.start_at(ids[1]), found.start_after(ids[1])] == [1, 1]
    assert [found.start_at(ids[2]), found.start_after(ids[2])] == [1, 2]
    assert found.start_at(("gone", "gone", "gone")) == 0


@pytest.mark.parametrize(
    "query",
    ["order=best", "sample=0", "sample=x", "status=good", "score_below=nan", "min_words=-1", "correction=maybe"],
)
def test_invalid_query_is_named(query: str) -> None:
    name, value = query.split("=")
    with pytest.raises(QueryError, match=f"{name}='{value}'"):
        ReviewQuery.parse({name: value})


def test_empty_and_other_parameters_are_ignored() -> None:
    assert ReviewQuery.parse({"stage": " ", "row": "a/b/c", "status": "ok"}) == ReviewQuery(status=Status.OK)


def test_correction_of_another_text_is_outdated(rows: list[ReviewRow]) -> None:
    row = rows[1]
    made = Correction.of(captioned(CLIPS[0], "Another text."), STAGE2.name, Decision.ACCEPT, "ann")
    assert row.state(made) is State.OUTDATED
    assert row.state(Correction.of(row.caption, STAGE2.name, Decision.ACCEPT, "ann")) is State.ACCEPTED
    assert row.shard == SHARD
