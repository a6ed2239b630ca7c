"""Tests of successive runs over a shard, with a fake engine."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from caption_assets.captioning.engine import EngineCrashed
from caption_assets.captioning.prefix_cache import NO_HITS
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.request import Completion, PoisonWindow, ReasoningCutOff, Request
from caption_assets.captioning.sampling import SamplingParams
from caption_assets.captioning.stage_run import POISON_CRASHES
from caption_assets.captioning.stages import Stage, StageGraph
from caption_assets.models.variants import SAMPLE
from caption_assets.sources.manifest import probe_clips
from caption_assets.sources.shard import find_shard
from caption_assets.store.checkpoints import checkpoint_folder
from caption_assets.store.lease import Leases
from caption_assets.store.tables import (
    Status,
    publish_captions,
    publish_manifest,
    read_captions,
    read_manifest,
)
from caption_assets.store.versions import TableVersions, manifest_version, read_versions
from caption_assets.video.frame_sampling import FrameSampling
from caption_assets.video.window import Windowing
from caption_assets.workers.sandbox import Sandbox
from tests.captioning.fake_engine import FakeEngine, SequentialEngine
from tests.captioning.harness import TABLES, Harness
from tests.captioning.run_events import RunEvents
from tests.conftest import SANDBOX
from tests.stages import STAGE1, STAGE2, STAGES, two_stages, with_prompts
from tests.videos import moving_video

pytestmark = pytest.mark.fast


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    """One shard of three clips with two windows each."""
    harness = Harness(tmp_path)
    harness.add_clips("a", "one", "two", "three")
    return harness


def test_workers_start_before_the_engine(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    def await_workers() -> None:
        while len(set(psutil.Process().children()) - others) < 2:
            time.sleep(0.01)

    others = set(psutil.Process().children())
    monkeypatch.setattr(harness, "count_engine", await_workers)
    with Sandbox(workers=2) as harness.sandbox:
        harness.run()
    assert [row["status"] for row in harness.rows(STAGE2.name)] == [Status.OK] * 6


def test_run_captions_all_windows_and_removes_checkpoints(harness: Harness) -> None:
    events = harness.run()
    assert events.failures == {}
    assert [row["status"] for row in harness.rows(STAGE2.name)] == [Status.OK] * 6
    assert (harness.requests, harness.engines) == ({1: 6, 2: 6}, 1)
    assert harness.checkpoint_files() == []


@pytest.mark.parametrize(("cached", "is_low"), [(1.0, False), (0.6, False), (0.4, True), (0.0, True)])
def test_run_warns_of_a_prefix_cache_hit_rate_below_one_half(harness: Harness, cached: float, is_low: bool) -> None:
    events = harness.run(engine=FakeEngine(cached=cached))
    assert [warning for warning in events.warnings if "prefix cache" in warning] == events.warnings
    assert len(events.warnings) == is_low
    hits = harness.stored_hits(STAGE2.name)
    assert hits.predicted > 0
    assert hits.share == pytest.approx(cached, abs=0.05)
    assert harness.stored_hits(STAGE1.name) == NO_HITS


def test_stage_2_alone_predicts_no_prefix_cache_hits(harness: Harness) -> None:
    harness.run(stages=(STAGE1,))
    events = harness.run(engine=FakeEngine(cached=0.0), stages=(STAGE2,))
    assert events.warnings == []
    assert harness.stored_hits(STAGE2.name) == NO_HITS


class EngineCrashingOnce(FakeEngine):
    """An engine that crashes at its second stage-2 request. Its successor has an empty prefix cache."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: set[str] = set()
        self.stage2 = 0

    async def complete(self, request: Request) -> Completion:
        self.stage2 += request.stage == 2
        if request.stage == 2 and self.stage2 == 2:
            self.shown.clear()
            raise EngineCrashed("the engine crashed")
        is_cached = request.video_id in self.shown
        self.shown.add(request.video_id)
        answer = await super().complete(request)
        return answer if is_cached else replace(answer, cached_tokens=0)


def test_prefix_cache_hits_are_not_predicted_for_an_engine_restarted_after_stage_1(harness: Harness) -> None:
    harness.run(engine=EngineCrashingOnce())
    hits = harness.stored_hits(STAGE2.name)
    assert hits.cached == hits.predicted > 0


def test_second_run_starts_no_engine_and_publishes_the_same_tables(harness: Harness) -> None:
    harness.run()
    before = {table: harness.rows(table) for table in TABLES}
    events = harness.run()
    assert (harness.requests, harness.engines) == ({}, 0)
    assert {table: published.reused for table, published in events.tables["a"].items()} == dict.fromkeys(TABLES, 6)
    assert {table: harness.rows(table) for table in TABLES} == before


def test_tables_store_the_versions_of_their_inputs(harness: Harness) -> None:
    harness.run(weights_version="w")
    manifest = manifest_version(read_manifest(harness.root, "a"))
    stage1, stage2 = (read_versions(harness.root, table, "a") for table in TABLES)
    assert stage1
    assert stage2
    assert (stage1.code, stage2.code) == (two_stages().version(STAGE1), two_stages().version(STAGE2))
    assert stage1.inputs == {"clip_manifest": manifest, "model_weights": "w"}
    assert stage2.inputs == {"stage1_captions": stage1.data}
    harness.run(stages=(STAGE2,))
    assert read_versions(harness.root, STAGE2.name, "a") == stage2


def test_table_stores_the_version_in_the_manifests_metadata(harness: Harness) -> None:
    rows = read_manifest(harness.root, "a")
    publish_manifest(harness.root, "a", rows, TableVersions("other", "2-x", {}).file_metadata)
    harness.run()
    versions = read_versions(harness.root, STAGE1.name, "a")
    assert versions
    assert versions.inputs["clip_manifest"] == "other"


def test_second_run_captions_only_added_clips(harness: Harness) -> None:
    harness.run()
    harness.add_clips("a", "four", "between")
    events = harness.run()
    assert harness.requests == {1: 4, 2: 4}
    assert events.tables["a"][STAGE2.name].reused == 6
    assert len(harness.rows(STAGE2.name)) == 10


def test_changed_stage_2_prompt_recaptions_stage_2_only(harness: Harness) -> None:
    harness.run()
    changed = with_prompts(two_stages(), stage2_captions="Say more than {stage1_captions}")
    events = harness.run(recipe=changed)
    assert harness.requests == {2: 6}
    assert {table: published.reused for table, published in events.tables["a"].items()} == {
        STAGE1.name: 6,
        STAGE2.name: 0,
    }


def test_changed_model_recaptions_all_windows(harness: Harness) -> None:
    harness.run()
    harness.run(recipe=two_stages(variant=replace(SAMPLE, revision="another")))
    assert harness.requests == {1: 6, 2: 6}


def test_changed_clip_is_recaptioned_alone(harness: Harness) -> None:
    harness.run()
    (harness.folder / "shards" / "a" / "two.mp4").write_bytes(moving_video(48, size=(128, 96)))
    harness.probe("a")
    harness.run()
    assert harness.requests == {1: 2, 2: 2}


def test_failed_rows_are_retried_up_to_the_maximum_attempts(harness: Harness) -> None:
    harness.run(max_attempts=8)
    first = harness.rows(STAGE1.name)[0]["caption"]

    def fails(request: Request) -> bool:
        harness.count(request)
        return request.stage == 2 and first in request.prompt

    other = with_prompts(two_stages(), stage2_captions="Go beyond {stage1_captions}")
    failing = FakeEngine(fails=fails)
    for stage2_requests, attempts in ((5 + 4, 4), (4, 8), (0, 8)):
        harness.run(engine=failing, recipe=other, max_attempts=8)
        assert harness.requests[2] == stage2_requests
        row = read_captions(harness.root, STAGE2.name, "a")[0]
        assert (row.status, row.error_kind, row.attempts) == (Status.FAILED, "refused", attempts)
    harness.run(recipe=other, max_attempts=9)
    assert harness.requests == {2: 1}
    assert read_captions(harness.root, STAGE2.name, "a")[0].attempts == 9


def test_poison_window_is_not_retried_by_the_next_run(harness: Harness) -> None:
    poison = read_manifest(harness.root, "a")[0].window_id

    def on_request(request: Request) -> None:
        harness.count(request)
        if request.video_id.startswith(poison):
            raise PoisonWindow("vLLM 1")

    harness.run(engine=FakeEngine(on_request), engine_settings="vLLM 1")
    row = read_captions(harness.root, STAGE1.name, "a")[0]
    assert (row.window_id, row.error_kind, row.attempts) == (poison, "poison", POISON_CRASHES)
    assert row.engine_settings == "vLLM 1"
    harness.run(engine=FakeEngine(on_request), engine_settings="vLLM 1")
    assert harness.requests == {}
    assert read_captions(harness.root, STAGE1.name, "a")[0] == row


def test_poison_window_is_retried_with_other_engine_settings(harness: Harness) -> None:
    poison = read_manifest(harness.root, "a")[0].window_id

    def on_request(request: Request) -> None:
        if request.video_id.startswith(poison):
            raise PoisonWindow("vLLM 1")

    harness.run(engine=FakeEngine(on_request), engine_settings="vLLM 1")
    harness.run(engine_settings="vLLM 2")
    assert harness.requests == {1: 1, 2: 1}
    row = read_captions(harness.root, STAGE1.name, "a")[0]
    assert (row.status, row.engine_settings) == (Status.OK, "vLLM 2")


def with_max_model_len(context: int) -> Recipe:
    return two_stages(engine={"max_model_len": context}, generation=SamplingParams(max_output_tokens=64))


def run_with_context(harness: Harness, context: int, **settings: Any) -> RunEvents:
    """Run with an engine and a recipe of this context length, in tokens."""
    return harness.run(
        engine=FakeEngine(harness.count, context=context), recipe=with_max_model_len(context), **settings
    )


@pytest.fixture
def harness_with_long_clip(harness: Harness) -> Harness:
    """Three short clips and one with windows of more tokens."""
    (harness.folder / "shards" / "a" / "long.mp4").write_bytes(
        moving_video(120, size=(96, 64), options={"preset": "ultrafast"})
    )
    clips = probe_clips(SANDBOX, harness.source, find_shard(harness.source, "a"), Windowing(120, 60))
    publish_manifest(harness.root, "a", (row for clip in clips for row in clip.rows), {})
    return harness


STAGE2_TOKENS = len(STAGE2.instruction({STAGE1.name: ""})) + 64 + 64
"""Maximum text tokens of a window in stage 2: prompt, the fake engine's caption of stage 1, answer."""


def test_longer_context_recaptions_only_windows_that_the_shorter_one_reduced(
    harness_with_long_clip: Harness,
) -> None:
    harness, short = harness_with_long_clip, STAGE2_TOKENS + 60
    run_with_context(harness, short)
    reduced = {row.clip_key for row in read_captions(harness.root, STAGE2.name, "a") if row.reductions}
    assert reduced == {"long.mp4"}
    run_with_context(harness, short)
    assert harness.requests == {}
    run_with_context(harness, 4096)
    assert harness.requests[2] == 1
    assert not any(row.reductions for row in read_captions(harness.root, STAGE2.name, "a"))
    run_with_context(harness, 8192)
    assert harness.requests == {}


def test_shorter_context_recaptions_only_windows_that_it_reduces(
    harness_with_long_clip: Harness,
) -> None:
    harness, short = harness_with_long_clip, STAGE2_TOKENS + 60
    run_with_context(harness, 4096)
    run_with_context(harness, short)
    assert harness.requests[2] == 1
    rows = read_captions(harness.root, STAGE2.name, "a")
    assert {row.clip_key for row in rows if row.reductions} == {"long.mp4"}
    stage1 = {row.key: {STAGE1.name: row.fingerprint} for row in read_captions(harness.root, STAGE1.name, "a")}
    assert {row.key: row.upstream_fingerprints for row in rows} == stage1


def test_window_too_long_for_the_context_is_retried_with_a_longer_context(harness: Harness) -> None:
    run_with_context(harness, 100)
    assert {row.error_kind for row in read_captions(harness.root, STAGE1.name, "a")} == {"too_long"}
    run_with_context(harness, 4096)
    assert harness.requests == {1: 6, 2: 6}


def test_higher_output_limit_recaptions_only_captions_that_were_cut_off(
    harness: Harness,
) -> None:
    def run(limit: int) -> None:
        harness.run(recipe=two_stages(generation=SamplingParams(max_output_tokens=limit), regenerations=0))

    run(10)
    reasons = Counter(row.finish_reason for row in read_captions(harness.root, STAGE1.name, "a"))
    assert set(reasons) == {"stop", "length"}
    run(10)
    assert harness.requests == {}
    run(16)
    assert harness.requests[1] == reasons["length"]
    run(512)
    assert harness.requests == {}
    run(10)
    assert harness.requests[1] == reasons["length"]


def test_reasoning_that_was_cut_off_is_retried_with_a_higher_output_limit(harness: Harness) -> None:
    def on_request(request: Request) -> None:
        if request.generation.max_output_tokens < 16:
            raise ReasoningCutOff(100, request.generation.max_output_tokens)

    short = two_stages(generation=SamplingParams(max_output_tokens=1))
    harness.run(engine=FakeEngine(on_request), recipe=short, max_attempts=1)
    assert {row.error_kind for row in read_captions(harness.root, STAGE1.name, "a")} == {"reasoning_cut_off"}
    harness.run(recipe=short, max_attempts=1)
    assert harness.requests == {}
    harness.run(recipe=two_stages(generation=SamplingParams(max_output_tokens=64)), max_attempts=1)
    assert harness.requests == {1: 6, 2: 6}


def test_higher_pixel_limits_recaption_only_windows_that_were_scaled_down(harness: Harness) -> None:
    small = replace(SAMPLE.pixels, min_pixels=4 * 28**2, max_pixels=6 * 28**2, total_pixels=48 * 28**2)
    large = replace(small, max_pixels=9 * 28**2, total_pixels=200 * 28**2)
    shown: dict[str, tuple[int, ...]] = {}
    for limits in (small, large):
        recipe = two_stages(variant=replace(SAMPLE, pixels=limits))
        harness.run(recipe=recipe)
        rows = read_captions(harness.root, STAGE1.name, "a")
        frames = {row.window_id: (len(row.frame_indices or ()), row.frame_height, row.frame_width) for row in rows}
        changed = [one for one, size in frames.items() if shown.get(one) != size]
        assert harness.requests[1] == len(changed)
        shown = frames  # type: ignore[assignment]
    assert 0 < len(changed) < len(shown)


def test_captions_with_fingerprints_of_earlier_releases_are_reused(harness: Harness) -> None:
    recipe = two_stages(frames=FrameSampling(fps=1.0))
    harness.run(recipe=recipe)
    windows = {window.window_id: window for window in read_manifest(harness.root, "a")}
    captions: dict[str, dict[str, str]] = {window_id: {} for window_id in windows}
    former: dict[tuple[str, str], str | None] = {}
    for stage in STAGES:
        rows = []
        for row in read_captions(harness.root, stage.name, "a"):
            made_from = captions[row.window_id]
            former[stage.name, row.window_id] = recipe.former_fingerprint(stage, windows[row.window_id], made_from)
            made_from[stage.name] = row.caption or ""
            upstream = {STAGE1.name: former[STAGE1.name, row.window_id] or ""} if stage is STAGE2 else None
            rows.append(replace(row, fingerprint=former[stage.name, row.window_id], upstream_fingerprints=upstream))
        publish_captions(harness.root, stage.name, "a", rows, [row.key for row in rows], {}, stage.columns)
    harness.run(recipe=recipe)
    assert harness.requests == {}
    for stage in STAGES:
        stored = {row.window_id: row.fingerprint for row in read_captions(harness.root, stage.name, "a")}
        assert stored == {window_id: former[stage.name, window_id] for window_id in windows}


def test_stages_run_alone_show_the_frames_of_a_joint_run_in_a_short_context(
    harness_with_long_clip: Harness,
) -> None:
    harness, short = harness_with_long_clip, STAGE2_TOKENS + 60
    run_with_context(harness, short)
    joint = {table: harness.rows(table) for table in TABLES}
    for table in TABLES:
        harness.root.remove(f"{table}/shard=a/captions.parquet")
    run_with_context(harness, short, stages=(STAGE1,))
    run_with_context(harness, short, stages=(STAGE2,))
    assert {table: harness.rows(table) for table in TABLES} == joint


def test_stage_2_alone_uses_published_stage_1_captions(harness: Harness) -> None:
    harness.run(stages=(STAGE1,))
    assert harness.requests == {1: 6}
    harness.run(stages=(STAGE2,))
    assert harness.requests == {2: 6}
    harness.run(stages=(STAGE2,))
    assert harness.requests == {}


def run_and_cancel(harness: Harness, after: int, **settings: Any) -> None:
    """Start a run and cancel it after a number of requests."""

    async def run() -> None:
        enough = asyncio.Event()

        def on_request(request: Request) -> None:
            harness.count(request)
            if harness.requests.total() > after:
                enough.set()

        running = asyncio.create_task(harness.caption(engine=SequentialEngine(on_request, seconds=0.02), **settings))
        await enough.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(run())


@pytest.mark.parametrize("answers", [1, 4, 5, 9, 11])
def test_canceled_run_is_resumed_with_every_answer(harness: Harness, answers: int) -> None:
    """The windows are captioned one by one, each in stage 1 and then in stage 2."""
    run_and_cancel(harness, answers)
    assert not harness.root.exists("stage2_captions/shard=a/captions.parquet")
    events = harness.run()
    assert events.failures == events.skips == {}
    done = {STAGE1.name: (answers + 1) // 2, STAGE2.name: answers // 2}
    assert harness.requests == Counter({1: 6 - done[STAGE1.name], 2: 6 - done[STAGE2.name]})
    assert {table: published.reused for table, published in events.tables["a"].items()} == done
    assert harness.checkpoint_files() == []
    uninterrupted = {table: harness.rows(table) for table in TABLES}
    for table in TABLES:
        harness.root.remove(f"{table}/shard=a/captions.parquet")
    harness.run()
    assert harness.requests == Counter({1: 6, 2: 6})
    assert {table: harness.rows(table) for table in TABLES} == uninterrupted


FOUR_STAGES = StageGraph(
    "four",
    (
        Stage("one", "What is it?"),
        Stage("two", "Where is it?"),
        Stage("both", "Join {one} and {two}."),
        Stage("short", "Shorten {both}.", video=False),
    ),
)


@pytest.mark.parametrize("answers", [1, 2, 3, 6, 11, 17, 22])
def test_canceled_run_of_four_stages_ends_in_the_same_tables(harness: Harness, answers: int) -> None:
    def tables() -> dict[str, list[dict[str, Any]]]:
        return {stage.name: harness.rows(stage.name) for stage in FOUR_STAGES.stages}

    recipe = Recipe(graph=FOUR_STAGES)
    run_and_cancel(harness, answers, recipe=recipe)
    harness.run(recipe=recipe)
    assert harness.requests.total() <= 24 - answers + 1  # two stages are in flight at the same time
    resumed = tables()
    for name in resumed:
        harness.root.remove(f"{name}/shard=a/captions.parquet")
    harness.run(recipe=recipe)
    assert harness.requests.total() == 24
    assert tables() == resumed


def test_checkpoints_of_another_recipe_are_ignored_and_removed(harness: Harness) -> None:
    run_and_cancel(harness, 9, recipe=two_stages(variant=replace(SAMPLE, revision="another")))
    assert harness.checkpoint_files() != []
    harness.run()
    assert harness.requests == {1: 6, 2: 6}
    assert harness.checkpoint_files() == []


def test_shard_leased_by_another_run_is_skipped_with_its_owner_named(harness: Harness) -> None:
    harness.add_clips("b", "one")
    with Leases(harness.root, "run 7") as leases:
        lease = leases.acquire("a")
        events = harness.run("a", "b")
        assert "run 7" in events.skips["a"]
        assert set(events.tables) == {"b"}
        leases.release(lease)
    assert harness.run().skips == {}


def test_one_of_two_concurrent_runs_captions_the_shard(harness: Harness) -> None:
    async def both() -> list[RunEvents]:
        return await asyncio.gather(
            *(harness.caption(engine=FakeEngine(harness.count, seconds=0.05)) for _ in range(2))
        )

    one, other = asyncio.run(both())
    assert [set(events.tables) | set(events.skips) for events in (one, other)] == [{"a"}, {"a"}]
    assert len(one.tables) + len(other.tables) == 1
    assert harness.requests == {1: 6, 2: 6}
    assert len(harness.rows(STAGE2.name)) == 6


def test_retry_of_a_run_acquires_its_lease(harness: Harness) -> None:
    Leases(harness.root, "run 7").acquire("a")  # and crashes without releasing it
    assert "run 7" in harness.run(owner="run 8").skips["a"]
    assert set(harness.run(owner="run 7").tables) == {"a"}


def test_run_that_lost_its_lease_publishes_nothing(harness: Harness) -> None:
    async def run() -> RunEvents:
        taken = False

        def on_request(request: Request) -> None:
            nonlocal taken
            if not taken:
                taken = True
                Leases(harness.root, "run 7").acquire("a")

        return await harness.caption(engine=FakeEngine(on_request), owner="run 7")

    events = asyncio.run(run())
    assert "claimed by run 7" in events.failures["a"]
    assert not harness.root.exists("stage1_captions/shard=a/captions.parquet")


def test_checkpoint_is_written_when_its_number_of_rows_is_finished(harness: Harness) -> None:
    begun = 0

    def on_request(request: Request) -> None:
        nonlocal begun
        if request.stage == 1:
            expected = 2 * (begun // 2)  # a file for each stage
            begun += 1
            for _ in range(100):  # the checkpoint is written while the next window is captioned
                if len(harness.checkpoint_files()) == expected:
                    return
                time.sleep(0.1)
            raise AssertionError(f"{harness.checkpoint_files()} before window {begun}")

    harness.run(engine=SequentialEngine(on_request), checkpoint_rows=2)
    assert begun == 6


def engine_blocking_path(harness: Harness, path: str) -> FakeEngine:
    """An engine that puts a folder where a file will be written. Not even the superuser can replace it by a file."""

    def on_request(request: Request) -> None:
        Path(harness.root.full(path), "something").mkdir(parents=True, exist_ok=True)

    return FakeEngine(on_request)


def test_failed_checkpoint_write_is_a_warning(harness: Harness) -> None:
    part = f"{checkpoint_folder('a')}/000001-000000-stage1_captions.parquet"
    events = harness.run(engine=engine_blocking_path(harness, part), checkpoint_rows=1)
    assert "a checkpoint could not be written" in events.warnings[0]
    assert "checkpoints could not be removed" in events.warnings[-1]
    assert events.tables["a"][STAGE2.name].reused == 0
    assert len(harness.rows(STAGE2.name)) == 6


def test_rows_that_could_not_be_published_are_reused_by_the_next_run(harness: Harness) -> None:
    table = "stage2_captions/shard=a/captions.parquet"
    assert "cannot write" in harness.run(engine=engine_blocking_path(harness, table)).failures["a"]
    shutil.rmtree(harness.root.full(table))
    harness.run()
    assert harness.requests == {}
    assert len(harness.rows(STAGE2.name)) == 6


def test_reused_windows_keep_their_previews_and_get_none(harness: Harness) -> None:
    harness.run(previews=True)
    names = harness.root.names("gallery/a/previews")
    assert len(names) == 6
    harness.root.remove(f"gallery/a/previews/{names[0]}")
    assert harness.run(previews=True).failures == {}
    assert harness.root.names("gallery/a/previews") == names[1:]
