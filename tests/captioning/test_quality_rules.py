"""Versions of the quality rules: newer rules flag stored captions again, and some of those are regenerated."""

from __future__ import annotations

import asyncio
import json
import shutil
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from caption_assets.captioning.caption_run import CaptionRun
from caption_assets.captioning.engine import CaptionEngine
from caption_assets.captioning.open_shard import PublishedTable, file_metadata
from caption_assets.captioning.quality import REGENERATED, RULES_VERSION, find_flags
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.reuse import EarlierRows, Reuse
from caption_assets.captioning.shard_queue import caption_shards
from caption_assets.captioning.stage_run import REGENERATION_TEMPERATURE, REGENERATION_TOP_P, STRONGER_PENALTY
from caption_assets.captioning.stages import Stage
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.captioning.window_job import WindowJob
from caption_assets.store.checkpoints import write_checkpoint
from caption_assets.store.root import Root
from caption_assets.store.tables import (
    CaptionFile,
    CaptionRow,
    publish_captions,
    read_captions,
    read_manifest,
    table_path,
)
from tests.captioning.fake_engine import FakeEngine, start_fake_engine
from tests.captioning.harness import Harness
from tests.captioning.run_events import RunEvents
from tests.captioning.test_earlier_root import FIXTURE, RECIPE, SHARD
from tests.conftest import SANDBOX, RunAsync
from tests.stages import STAGE1, STAGE2, STAGES, two_stages

TEXTS = Path(__file__).parents[2] / "benchmarks" / "texts"
RULES = Path(__file__).parents[1] / "fixtures" / "quality_rules.json"
"""Version of the rules, flags and constants of regeneration, and the flags of each text by a hash of its line."""
NEWER = replace(RECIPE, quality_rules=2)
NEWER_FAKE = two_stages(quality_rules=2)
META = "The video shows a small red circle that moves to the left."
REFUSAL = "I'm sorry, but I cannot watch videos."
LONG_WITH_BOILERPLATE = (
    "Certainly! A small red circle moves to the left across a plain dark background, while light falls from above; it "
    "keeps its size and its speed, leaves no trail, touches no edge, and after some seconds it rests near the border."
)


def start_no_engine() -> AbstractAsyncContextManager[CaptionEngine]:
    raise AssertionError("an engine was started, though no flag calls for another caption")


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """A root whose captions are flagged by version 1 of the rules; its files do not name the version."""
    return Root.open(str(shutil.copytree(FIXTURE, tmp_path / "root")))


def store_caption(root: Root, stage: Stage, number: int, caption: str) -> None:
    """Replace a stored caption by one that version 1 did not flag."""
    rows = read_captions(root, stage.name, SHARD)
    rows[number] = replace(rows[number], caption=caption, flags=())
    publish_captions(root, stage.name, SHARD, rows, [row.key for row in rows], {})


def caption_run(root: Root, recipe: Recipe = NEWER) -> CaptionRun:
    return CaptionRun(root, Root.open(f"{root.url}/shards"), recipe, (STAGE2,), engine_settings="other")


def run_without_engine(root: Root, recipe: Recipe = NEWER) -> PublishedTable:
    events = RunEvents()
    asyncio.run(
        caption_shards(EngineSupervisor(start_no_engine), SANDBOX, caption_run(root, recipe), [SHARD], [events])
    )
    assert (events.failures, events.warnings) == ({}, [])
    return events.tables[SHARD][STAGE2.name]


@pytest.mark.fast
def test_newer_rules_flag_stored_captions_again(root: Root) -> None:
    stored = read_captions(root, STAGE2.name, SHARD)
    store_caption(root, STAGE2, 1, META)
    published = run_without_engine(root)
    assert (published.reused, published.fresh) == (5, [])
    assert [row.flags for row in published.rows if row.caption == META] == [("meta",)]
    others = [(row, before) for row, before in zip(published.rows, stored, strict=True) if row.caption != META]
    assert all(row.flags == tuple(before.flags) for row, before in others)


@pytest.mark.fast
def test_stored_captions_keep_their_flags_under_the_same_rules(root: Root) -> None:
    store_caption(root, STAGE2, 1, REFUSAL)
    published = run_without_engine(root, RECIPE)
    assert [list(row.flags) for row in published.rows if row.caption == REFUSAL] == [[]]


@pytest.mark.fast
def test_flagged_captions_stay_where_regeneration_is_off(root: Root) -> None:
    store_caption(root, STAGE2, 1, REFUSAL)
    recipe = replace(NEWER, regenerations=0)
    captions = {row.window_id: {STAGE1.name: row.caption or ""} for row in read_captions(root, STAGE1.name, SHARD)}
    rows = read_captions(root, STAGE2.name, SHARD)
    windows = {window.window_id: window for window in read_manifest(root, SHARD)}
    rows = [
        replace(row, fingerprint=recipe.fingerprint(STAGE2, windows[row.window_id], captions[row.window_id]))
        if row.fingerprint
        else row
        for row in rows
    ]
    publish_captions(root, STAGE2.name, SHARD, rows, [row.key for row in rows], {})
    published = run_without_engine(root, recipe)
    assert [row.flags for row in published.rows if row.caption == REFUSAL] == [("refusal",)]


@pytest.mark.fast
def test_newer_rules_compare_stored_captions_with_those_of_the_previous_window(root: Root) -> None:
    store_caption(root, STAGE2, 1, read_captions(root, STAGE2.name, SHARD)[0].caption or "")
    published = run_without_engine(root)
    assert [row.flags for row in published.rows[:3]] == [(), ("near_duplicate",), ()]


@pytest.mark.fast
def test_newer_rules_regenerate_stored_captions_that_were_cut_off(root: Root) -> None:
    [window, *_] = read_manifest(root, SHARD)
    captions = {STAGE1.name: read_captions(root, STAGE1.name, SHARD)[0].caption or ""}
    [first, *others] = read_captions(root, STAGE2.name, SHARD)
    fingerprint = NEWER.fingerprint(STAGE2, window, captions, cut_off=True)
    rows = [replace(first, finish_reason="length", fingerprint=fingerprint), *others]
    publish_captions(root, STAGE2.name, SHARD, rows, [row.key for row in rows], {})
    events = RunEvents()
    supervisor = EngineSupervisor(lambda: start_fake_engine(FakeEngine()))
    asyncio.run(caption_shards(supervisor, SANDBOX, caption_run(root), [SHARD], [events]))
    [fresh] = events.tables[SHARD][STAGE2.name].fresh
    assert (fresh.key, fresh.attempts) == (first.key, first.attempts + 1)


@pytest.mark.fast
def test_published_tables_name_their_rules(root: Root) -> None:
    run_without_engine(root)
    metadata = pq.read_schema(root.full(table_path(STAGE2.name, SHARD))).metadata
    assert metadata[b"quality_rules"] == b"2"
    assert file_metadata(two_stages(), STAGE2)["quality_rules"] == str(RULES_VERSION)


@pytest.mark.fast
def test_rules_of_a_checkpoint_decide_on_its_rows(root: Root) -> None:
    rows = read_captions(root, STAGE2.name, SHARD)
    root.remove(table_path(STAGE2.name, SHARD))
    checked = [replace(row, caption=META, flags=()) for row in rows[:1]]
    write_checkpoint(root, SHARD, 1, 0, {STAGE2.name: checked}, {"quality_rules": "2"})
    write_checkpoint(root, SHARD, 1, 1, {STAGE2.name: [row for row in rows[1:] if row.fingerprint]}, {})
    published = run_without_engine(root)
    assert list(published.rows[0].flags) == []


@pytest.mark.fast
def test_version_of_the_rules_changes_the_code_version_and_no_fingerprint(root: Root) -> None:
    [window, *_] = read_manifest(root, SHARD)
    captions = {STAGE1.name: "A red circle moves left."}
    assert NEWER.version(STAGE1) != RECIPE.version(STAGE1)
    assert NEWER.fingerprint(STAGE1, window) == RECIPE.fingerprint(STAGE1, window)
    assert NEWER.fingerprint(STAGE2, window, captions) == RECIPE.fingerprint(STAGE2, window, captions)


@pytest.mark.engine
def test_only_captions_whose_flags_call_for_it_are_regenerated(
    root: Root, supervisor: EngineSupervisor, run_async: RunAsync[None]
) -> None:
    stored = read_captions(root, STAGE2.name, SHARD)
    store_caption(root, STAGE2, 1, REFUSAL)
    events = RunEvents()
    run_async(caption_shards(supervisor, SANDBOX, caption_run(root), [SHARD], [events]))
    published = events.tables[SHARD][STAGE2.name]
    assert [row.key for row in published.fresh] == [stored[1].key]
    assert [row.caption for row in published.rows] == [row.caption for row in stored]
    assert published.rows[1].attempts > stored[1].attempts


@pytest.mark.engine
def test_earlier_caption_stays_where_the_new_one_is_no_better(
    root: Root, supervisor: EngineSupervisor, run_async: RunAsync[None]
) -> None:
    store_caption(root, STAGE2, 1, LONG_WITH_BOILERPLATE)
    events = RunEvents()
    run_async(caption_shards(supervisor, SANDBOX, caption_run(root), [SHARD], [events]))
    published = events.tables[SHARD][STAGE2.name]
    assert (published.reused, [row.caption for row in published.fresh]) == (4, [LONG_WITH_BOILERPLATE])
    assert published.rows[1].flags == ("boilerplate",)
    assert run_without_engine(root).reused == 5


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    """A root whose first stage-1 caption has a flag of newer rules."""
    harness = Harness(tmp_path)
    harness.add_clips("a", "one")
    harness.run()
    [window, *_] = read_manifest(harness.root, "a")
    stage1, stage2 = (read_captions(harness.root, stage.name, "a") for stage in STAGES)
    stage1[0] = replace(stage1[0], caption=REFUSAL)
    fingerprint = two_stages().fingerprint(STAGE2, window, {STAGE1.name: REFUSAL})
    stage2[0] = replace(stage2[0], fingerprint=fingerprint)
    for stage, rows in zip(STAGES, (stage1, stage2), strict=True):
        publish_captions(harness.root, stage.name, "a", rows, [row.key for row in rows], {})
    return harness


def first_rows(harness: Harness) -> list[CaptionRow]:
    return [read_captions(harness.root, stage.name, "a")[0] for stage in STAGES]


@pytest.mark.fast
def test_stage_2_follows_a_regenerated_stage_1(harness: Harness) -> None:
    before, _ = first_rows(harness)
    harness.run(recipe=NEWER_FAKE)
    assert harness.requests == {1: 1, 2: 1}
    stage1, stage2 = first_rows(harness)
    assert stage1.caption != REFUSAL
    assert stage1.fingerprint not in (None, before.fingerprint)
    assert stage2.upstream_fingerprints == {STAGE1.name: stage1.fingerprint}
    harness.run(recipe=NEWER_FAKE)
    assert harness.engines == 0


@pytest.mark.fast
def test_run_of_stage_1_alone_leaves_stage_2_outdated(harness: Harness) -> None:
    harness.run(recipe=NEWER_FAKE, stages=(STAGE1,))
    stage1, stage2 = first_rows(harness)
    assert stage1.caption != REFUSAL
    assert stage2.upstream_fingerprints != {STAGE1.name: stage1.fingerprint}


@pytest.mark.fast
@pytest.mark.parametrize("cause", ["failed request", "unreadable clip"])
def test_failed_regeneration_keeps_the_captions_of_both_stages(harness: Harness, cause: str) -> None:
    before = first_rows(harness)
    if cause == "unreadable clip":
        (harness.folder / "shards" / "a" / "one.mp4").unlink()
    engine = FakeEngine(harness.count, fails=lambda request: request.stage == 1)
    published = harness.run(engine=engine, recipe=NEWER_FAKE).tables["a"]
    assert [row.caption for row in first_rows(harness)] == [row.caption for row in before]
    assert harness.requests[2] == 0
    [tried] = published[STAGE1.name].fresh  # so that checkpoints contain it
    assert tried.flags == ("refusal",)
    assert tried.attempts > before[0].attempts
    harness.run(recipe=NEWER_FAKE)
    assert harness.engines == 0


@pytest.mark.fast
def test_rows_of_newer_rules_are_preferred_to_rows_of_older_rules(root: Root) -> None:
    rows = read_captions(root, STAGE2.name, SHARD)
    older = replace(rows[1], caption=REFUSAL, flags=())
    rows[1] = replace(rows[1], caption=LONG_WITH_BOILERPLATE, flags=("boilerplate",))
    publish_captions(root, STAGE2.name, SHARD, rows, [row.key for row in rows], {"quality_rules": "2"})
    write_checkpoint(root, SHARD, 1, 0, {STAGE2.name: [older]}, {})
    assert run_without_engine(root).rows[1].caption == LONG_WITH_BOILERPLATE


@pytest.mark.fast
def test_near_duplicate_stays_while_the_previous_caption_is_not_known(root: Root) -> None:
    first, second, *_ = read_manifest(root, SHARD)
    row = replace(read_captions(root, STAGE1.name, SHARD)[1], flags=("near_duplicate",))
    reuse = Reuse(NEWER, 8, EarlierRows([CaptionFile(STAGE1.name, [row], {})]), "")
    previous = WindowJob(first, list, (STAGE1,))
    window = WindowJob(second, list, (STAGE1,), previous=previous)
    reuse.resolve(window)
    assert window.row(STAGE1).flags == ("near_duplicate",)
    previous.add_row(STAGE1, replace(row, caption="Two dogs run over wet grass in the evening."))
    again = WindowJob(second, list, (STAGE1,), previous=previous)
    reuse.resolve(again)
    assert again.row(STAGE1).flags == ()


@pytest.mark.fast
def test_changed_rules_have_another_version() -> None:
    """If this fails, the rules changed: increase ``RULES_VERSION`` and run this module, which stores their flags."""
    stored, present = json.loads(RULES.read_text()), present_rules()
    common = stored["flags"].keys() & present["flags"].keys()
    assert len(common) > 100
    assert {text: present["flags"][text] for text in common} == {text: stored["flags"][text] for text in common}
    assert {**present, "flags": None} == {**stored, "flags": None}


def present_rules() -> dict[str, Any]:
    """The content of ``RULES`` for the present code."""
    flags = {}
    for line in [line for name in ("good", "bad") for line in (TEXTS / f"{name}.jsonl").read_text().splitlines()]:
        text = json.loads(line)
        flags[sha256(line.encode()).hexdigest()[:12]] = list(
            find_flags(
                text["caption"],
                finish_reason="stop",
                instruction=text.get("instruction", STAGE2.template),
                neighbor=text.get("neighbor"),
            )
        )
    constants = [REGENERATION_TEMPERATURE, REGENERATION_TOP_P, STRONGER_PENALTY]
    return {"version": RULES_VERSION, "regenerated": sorted(REGENERATED), "constants": constants, "flags": flags}


if __name__ == "__main__":
    RULES.write_text(json.dumps(present_rules(), indent=1) + "\n")
