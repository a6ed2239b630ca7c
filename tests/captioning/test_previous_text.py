"""Tests of the previous texts of rows, over successive publications."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.captioning.previous_text import previous_prompts, with_previous
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.request import Request
from caption_assets.store.table_file import read_file_metadata
from caption_assets.store.tables import CaptionFile, CaptionRow, PreviousText, Status, read_captions, table_path
from caption_assets.store.versions import captions_version
from tests.captioning.fake_engine import FakeEngine
from tests.captioning.harness import TABLES, Harness
from tests.captioning.test_shard_queue import run_and_cancel
from tests.stages import STAGE1, STAGE2, two_stages, with_prompts
from tests.videos import moving_video

pytestmark = pytest.mark.fast

Attempt = tuple[str, str | None]
"""Fingerprint and caption of a row; None for a failure."""


def row_of(attempt: Attempt) -> CaptionRow:
    fingerprint, caption = attempt
    status = Status.FAILED if caption is None else Status.OK
    return CaptionRow("a.mp4", 0, "id", 0.0, 8.5, status, caption=caption, fingerprint=fingerprint)


def published(*attempts: Attempt) -> CaptionRow:
    """The row of a window after these attempts, each published before the next one."""
    rows: list[CaptionRow] = []
    for attempt in attempts:
        rows = with_previous([row_of(attempt)], rows)
    return rows[0]


def previous(*attempts: Attempt) -> str | None:
    """The previous caption after these attempts."""
    found = published(*attempts).previous
    return found.caption if found else None


def test_first_caption_has_no_previous_text() -> None:
    assert previous(("1", "A car.")) is None


def test_caption_with_another_fingerprint_keeps_the_text_that_it_replaces() -> None:
    assert previous(("1", "A car."), ("2", "A red car.")) == "A car."


def test_equal_text_with_another_fingerprint_is_a_previous_text() -> None:
    assert previous(("0", "Rain."), ("1", "A car."), ("2", "A car.")) == "A car."


def test_failed_row_keeps_the_text_until_the_next_caption() -> None:
    failed = published(("1", "A car."), ("2", None))
    assert (failed.caption, failed.previous and failed.previous.caption) == (None, "A car.")
    assert previous(("1", "A car."), ("2", None), ("2", "A red car.")) == "A car."


def test_row_of_another_time_range_has_no_previous_text() -> None:
    earlier = replace(row_of(("1", "A car.")), end_seconds=4.0)
    assert with_previous([row_of(("2", "A red car."))], [earlier])[0].previous is None


attempts = st.tuples(st.sampled_from("123"), st.none() | st.sampled_from(["A car.", "A red car.", "Rain."]))
histories = st.lists(attempts, min_size=1, max_size=8)


@given(histories)
def test_previous_text_is_the_last_caption_before_the_present_version(history: list[Attempt]) -> None:
    earlier, present = history[:-1], history[-1]
    while earlier and earlier[-1] == present:
        earlier.pop()
    captions = [caption for _, caption in earlier if caption is not None]
    assert previous(*history) == (captions[-1] if captions else None)


@given(histories, st.integers(1, 3))
def test_reuse_changes_nothing(history: list[Attempt], times: int) -> None:
    assert published(*history, *[history[-1]] * times) == published(*history)


@given(histories)
def test_data_version_does_not_depend_on_previous_texts(history: list[Attempt]) -> None:
    assert captions_version([published(*history)]) == captions_version([row_of(history[-1])])


def test_previous_text_of_a_choice_has_its_probability_and_score() -> None:
    rows = [replace(row_of(("1", "no")), probabilities={"yes": 0.2, "no": 0.8})]
    [row] = with_previous([row_of(("2", "yes"))], rows, "yes")
    assert row.previous == PreviousText("no", fingerprint="1", probability=0.8, score=0.2)


def test_prompts_of_previous_texts_are_kept_while_a_row_has_them() -> None:
    rows = [replace(row_of(("1", "A car.")), prompt_hash="h1", prompt_name="general")]
    own = [replace(row_of(("1", "A car.")), clip_key="b.mp4", window_id="b", prompt_hash="h2", prompt_name="clip")]
    changed = [replace(row, fingerprint="2", caption="Rain.", prompt_hash="h3") for row in (*rows, *own)]
    second = with_previous(changed, [*rows, *own])
    found = previous_prompts(second, CaptionFile("t", [*rows, *own], {}), "Describe.")
    assert found == {"previous_prompts": '{"h1": "Describe."}'}
    third = with_previous(second[:1], second)
    assert previous_prompts(third, CaptionFile("t", second, found), "Say more.") == found
    fourth = with_previous([replace(second[0], fingerprint="4", prompt_hash="h4")], second)
    assert previous_prompts(fourth, CaptionFile("t", second, found), "Say.") == {"previous_prompts": '{"h3": "Say."}'}


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a harness with one captioned shard of two clips with two windows each. Read-only."""
    harness = Harness(tmp_path_factory.mktemp("captioned"))
    harness.add_clips("a", "one", "two")
    harness.run()
    return harness.folder


@pytest.fixture
def harness(captioned: Path, tmp_path: Path) -> Harness:
    """A harness with a copy of that shard."""
    return Harness(shutil.copytree(captioned, tmp_path / "copy"))


def recipe(number: int) -> Recipe:
    """A recipe with other prompts of both stages."""
    return with_prompts(
        two_stages(), stage1_captions=f"Describe {number}.", stage2_captions=f"Improve {number}: {{stage1_captions}}"
    )


def captions(harness: Harness, table: str) -> list[str | None]:
    return [row.caption for row in read_captions(harness.root, table, "a")]


def previous_captions(harness: Harness, table: str) -> list[str | None]:
    rows = read_captions(harness.root, table, "a")
    return [row.previous.caption if row.previous else None for row in rows]


def test_recaptioned_stage_keeps_its_previous_texts_and_the_reused_one_gets_none(harness: Harness) -> None:
    before = read_captions(harness.root, STAGE2.name, "a")
    harness.run(recipe=with_prompts(two_stages(), stage2_captions="Say more than {stage1_captions}"))
    assert previous_captions(harness, STAGE1.name) == [None] * 4
    rows = read_captions(harness.root, STAGE2.name, "a")
    assert [row.previous and (row.previous.caption, row.previous.fingerprint) for row in rows] == [
        (row.caption, row.fingerprint) for row in before
    ]
    metadata = read_file_metadata(pq.ParquetFile(harness.root.full(table_path(STAGE2.name, "a"))))
    assert rows[0].previous
    assert json.loads(metadata["previous_prompts"]) == {rows[0].previous.prompt_hash: STAGE2.prompt}


def test_previous_texts_survive_further_runs_and_are_replaced_by_the_next_recaptioning(harness: Harness) -> None:
    first = {table: captions(harness, table) for table in TABLES}
    harness.run(recipe=recipe(1))
    second = {table: captions(harness, table) for table in TABLES}
    harness.run(recipe=recipe(1))
    assert harness.requests == {}
    assert {table: previous_captions(harness, table) for table in TABLES} == first
    harness.run(recipe=recipe(2))
    assert {table: previous_captions(harness, table) for table in TABLES} == second


def test_failed_recaptioning_keeps_the_texts(harness: Harness) -> None:
    before = {table: captions(harness, table) for table in TABLES}

    def fails(request: Request) -> bool:
        return request.stage == 1

    harness.run(engine=FakeEngine(fails=fails), recipe=recipe(1))
    assert captions(harness, STAGE2.name) == [None] * 4
    assert {table: previous_captions(harness, table) for table in TABLES} == before
    harness.run(recipe=recipe(1))
    assert None not in captions(harness, STAGE2.name)
    assert {table: previous_captions(harness, table) for table in TABLES} == before


@pytest.mark.parametrize("requests", [1, 7])
def test_canceled_recaptionings_leave_no_previous_text(harness: Harness, requests: int) -> None:
    before = {table: captions(harness, table) for table in TABLES}
    for number in (1, 2):
        run_and_cancel(harness, requests, recipe=recipe(number))
    harness.run(recipe=recipe(3))
    assert {table: previous_captions(harness, table) for table in TABLES} == before


def test_return_to_the_first_recipe_after_a_canceled_recaptioning_changes_nothing(harness: Harness) -> None:
    before = {table: harness.rows(table) for table in TABLES}
    run_and_cancel(harness, 4, recipe=recipe(1))
    harness.run()
    assert {table: harness.rows(table) for table in TABLES} == before


def test_run_that_ended_between_its_tables_gives_both_previous_texts(harness: Harness) -> None:
    before = {table: captions(harness, table) for table in TABLES}
    run_and_cancel(harness, 5, recipe=recipe(1))
    harness.run(recipe=recipe(1), stages=recipe(1).stages[:1])
    harness.run(recipe=recipe(1))
    assert {table: previous_captions(harness, table) for table in TABLES} == before


def test_changed_clip_has_no_previous_text(harness: Harness) -> None:
    (harness.folder / "shards" / "a" / "two.mp4").write_bytes(moving_video(48, size=(128, 96)))
    harness.probe("a")
    harness.run(recipe=recipe(1))
    found = previous_captions(harness, STAGE1.name)
    assert [text is None for text in found] == [False, False, True, True]


def test_table_of_an_earlier_release_gives_previous_texts(harness: Harness) -> None:
    before = captions(harness, STAGE2.name)
    for table in TABLES:
        path = harness.root.full(table_path(table, "a"))
        former = pq.read_table(path)
        pq.write_table(former.drop_columns(["previous"]).replace_schema_metadata({"schema_version": "2"}), path)
    assert previous_captions(harness, STAGE2.name) == [None] * 4
    harness.run(recipe=recipe(1))
    assert previous_captions(harness, STAGE2.name) == before
