"""Successive runs over a shard, with a stand-in for the engine."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from caption_assets.captioning.captioner import POISON_CRASHES
from caption_assets.captioning.engine import EngineCrashed
from caption_assets.captioning.job import Job
from caption_assets.captioning.prefix_cache import NO_HITS, CacheHits
from caption_assets.captioning.recipe import Recipe, SamplingParams
from caption_assets.captioning.request import Completion, PoisonWindow, ReasoningCutOff, Request
from caption_assets.captioning.shard_queue import caption_shards
from caption_assets.captioning.stages import STAGE1, STAGE2
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.sources.manifest import probe_clips
from caption_assets.sources.shard import find_shard
from caption_assets.store.checkpoints import checkpoint_folder
from caption_assets.store.lease import Leases
from caption_assets.store.root import Root
from caption_assets.store.table_file import file_metadata
from caption_assets.store.tables import Status, publish_manifest, read_captions, read_manifest, table_path
from caption_assets.store.versions import TableVersions, manifest_version, read_versions
from caption_assets.video.frame_sampling import FrameSampling
from caption_assets.video.window import Windowing
from tests.captioning.stand_in import StandIn, start_stand_in
from tests.captioning.watch import Log
from tests.conftest import SANDBOX
from tests.videos import moving_video

pytestmark = pytest.mark.fast

BOTH = (STAGE1.name, STAGE2.name)
UNSURE = {"prompt_tokens", "cached_tokens", "output_tokens", "attempts"}
"""Columns in which two runs may differ."""


class World:
    """A root with shards of small clips, and runs over them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = Root.open(str(folder / "root"))
        self.source = Root.open(str(folder / "shards"))
        self.asked: Counter[int] = Counter()
        """Requests of the last run, by stage."""
        self.engines = 0
        """That the last run started."""

    def add_clips(self, shard: str, *names: str) -> None:
        """Put clips into a shard and probe it; each shows something else."""
        folder = self.folder / "shards" / shard
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            side = 64 + 2 * (sum(name.encode()) % 30)
            (folder / f"{name}.mp4").write_bytes(moving_video(48, size=(side, 64), options={"preset": "ultrafast"}))
        self.probe(shard)

    def probe(self, shard: str) -> None:
        """Make the shard's manifest: two windows a clip."""
        clips = probe_clips(SANDBOX, self.source, find_shard(self.source, shard), Windowing(24, 12))
        publish_manifest(self.root, shard, (row for clip in clips for row in clip.rows), {})

    def job(self, **how: Any) -> Job:
        return replace(Job(self.root, self.source, Recipe()), **how)

    def run(self, *shards: str, engine: StandIn | None = None, **how: Any) -> Log:
        return asyncio.run(self.captions(*shards, engine=engine, **how))

    async def captions(self, *shards: str, engine: StandIn | None = None, **how: Any) -> Log:
        log, self.engines = Log(), 0
        self.asked.clear()
        stand_in = engine or StandIn(self.count)
        job = self.job(**how)
        supervisor = EngineSupervisor(lambda: start_stand_in(stand_in, self.count_engine), settings=job.engine_settings)
        await caption_shards(supervisor, SANDBOX, job, shards or ["a"], [log])
        return log

    def count(self, request: Request) -> None:
        self.asked[request.stage] += 1

    def count_engine(self) -> None:
        self.engines += 1

    def rows(self, table: str, shard: str = "a") -> list[dict[str, Any]]:
        """A published table, without what may differ."""
        found = [asdict(row) for row in read_captions(self.root, table, shard)]
        return [{name: value for name, value in row.items() if name not in UNSURE} for row in found]

    def stored_hits(self, table: str) -> CacheHits:
        """The prefix cache's hits in the file metadata of a published table."""
        return CacheHits.from_facts(file_metadata(pq.ParquetFile(self.root.full(table_path(table, "a")))))

    def left_over(self, shard: str = "a") -> list[str]:
        """What lies beside the shard's lease."""
        return [name for name in self.root.names(checkpoint_folder(shard)) if not name.startswith("lease-")]


@pytest.fixture
def world(tmp_path: Path) -> World:
    """One shard of three clips, six windows."""
    made = World(tmp_path)
    made.add_clips("a", "one", "two", "three")
    return made


def test_all_windows_are_captioned_and_nothing_is_left_over(world: World) -> None:
    log = world.run()
    assert log.failures == {}
    assert [row["status"] for row in world.rows(STAGE2.name)] == [Status.OK] * 6
    assert (world.asked, world.engines) == ({1: 6, 2: 6}, 1)
    assert world.left_over() == []


@pytest.mark.parametrize(("cached", "is_low"), [(1.0, False), (0.6, False), (0.4, True), (0.0, True)])
def test_a_run_that_takes_less_than_half_from_the_prefix_cache_warns(world: World, cached: float, is_low: bool) -> None:
    log = world.run(engine=StandIn(cached=cached))
    assert [warning for warning in log.warnings if "prefix cache" in warning] == log.warnings
    assert len(log.warnings) == is_low
    hits = world.stored_hits(STAGE2.name)
    assert hits.predicted > 0
    assert hits.share == pytest.approx(cached, abs=0.05)
    assert world.stored_hits(STAGE1.name) == NO_HITS


def test_stage_2_alone_predicts_no_hits(world: World) -> None:
    world.run(stages=(STAGE1,))
    log = world.run(engine=StandIn(cached=0.0), stages=(STAGE2,))
    assert log.warnings == []
    assert world.stored_hits(STAGE2.name) == NO_HITS


class CrashingOnce(StandIn):
    """Crashes at its second stage 2; the engine that is built then has an empty prefix cache."""

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


def test_hits_are_not_expected_of_an_engine_that_was_built_after_stage_1(world: World) -> None:
    world.run(engine=CrashingOnce())
    hits = world.stored_hits(STAGE2.name)
    assert hits.cached == hits.predicted > 0


def test_a_second_run_starts_no_engine_and_publishes_the_same(world: World) -> None:
    world.run()
    before = {table: world.rows(table) for table in BOTH}
    log = world.run()
    assert (world.asked, world.engines) == ({}, 0)
    assert {table: published.reused for table, published in log.tables["a"].items()} == dict.fromkeys(BOTH, 6)
    assert {table: world.rows(table) for table in BOTH} == before


def test_tables_say_which_versions_of_their_inputs_they_were_made_from(world: World) -> None:
    world.run(weights_version="w")
    manifest = manifest_version(read_manifest(world.root, "a"))
    stage1, stage2 = (read_versions(world.root, table, "a") for table in BOTH)
    assert stage1
    assert stage2
    assert (stage1.code, stage2.code) == (Recipe().version(STAGE1), Recipe().version(STAGE2))
    assert stage1.inputs == {"clip_manifest": manifest, "model_weights": "w"}
    assert stage2.inputs == {"stage1_captions": stage1.data}
    world.run(stages=(STAGE2,))
    assert read_versions(world.root, STAGE2.name, "a") == stage2


def test_a_table_names_the_manifest_by_the_version_that_is_stored_with_it(world: World) -> None:
    rows = read_manifest(world.root, "a")
    publish_manifest(world.root, "a", rows, TableVersions("other", "2-x", {}).file_metadata)
    world.run()
    versions = read_versions(world.root, STAGE1.name, "a")
    assert versions
    assert versions.inputs["clip_manifest"] == "other"


def test_only_clips_that_were_added_are_captioned(world: World) -> None:
    world.run()
    world.add_clips("a", "four", "between")
    log = world.run()
    assert world.asked == {1: 4, 2: 4}
    assert log.tables["a"][STAGE2.name].reused == 6
    assert len(world.rows(STAGE2.name)) == 10


def test_a_new_stage_2_prompt_leaves_stage_1_as_it_is(world: World) -> None:
    world.run()
    prompt = replace(Recipe().prompt, stage2="Say more than {caption}")
    log = world.run(recipe=Recipe(prompt=prompt))
    assert world.asked == {2: 6}
    assert {table: published.reused for table, published in log.tables["a"].items()} == {
        STAGE1.name: 6,
        STAGE2.name: 0,
    }


def test_another_model_makes_everything_anew(world: World) -> None:
    world.run()
    world.run(recipe=Recipe(variant=replace(Recipe().variant, revision="another")))
    assert world.asked == {1: 6, 2: 6}


def test_a_changed_clip_is_captioned_again_alone(world: World) -> None:
    world.run()
    (world.folder / "shards" / "a" / "two.mp4").write_bytes(moving_video(48, size=(128, 96)))
    world.probe("a")
    world.run()
    assert world.asked == {1: 2, 2: 2}


def test_failed_rows_are_made_again_until_their_attempts_reach_the_limit(world: World) -> None:
    world.run(max_attempts=8)
    first = world.rows(STAGE1.name)[0]["caption"]

    def fails(request: Request) -> bool:
        world.count(request)
        return request.stage == 2 and first in request.prompt

    other = replace(Recipe().prompt, stage2="Go beyond {caption}")
    broken = StandIn(fails=fails)
    for asked_of_the_broken_one, attempts in ((5 + 4, 4), (4, 8), (0, 8)):
        world.run(engine=broken, recipe=Recipe(prompt=other), max_attempts=8)
        assert world.asked[2] == asked_of_the_broken_one
        row = read_captions(world.root, STAGE2.name, "a")[0]
        assert (row.status, row.error_kind, row.attempts) == (Status.FAILED, "refused", attempts)
    world.run(recipe=Recipe(prompt=other), max_attempts=9)
    assert world.asked == {2: 1}
    assert read_captions(world.root, STAGE2.name, "a")[0].attempts == 9


def test_a_window_that_kills_the_engine_is_not_asked_again_by_the_next_run(world: World) -> None:
    poison = read_manifest(world.root, "a")[0].window_id

    def asked(request: Request) -> None:
        world.count(request)
        if request.video_id.startswith(poison):
            raise PoisonWindow("vLLM 1")

    world.run(engine=StandIn(asked), engine_settings="vLLM 1")
    row = read_captions(world.root, STAGE1.name, "a")[0]
    assert (row.window_id, row.error_kind, row.attempts) == (poison, "poison", POISON_CRASHES)
    assert row.engine_settings == "vLLM 1"
    world.run(engine=StandIn(asked), engine_settings="vLLM 1")
    assert world.asked == {}
    assert read_captions(world.root, STAGE1.name, "a")[0] == row


def test_a_window_that_killed_the_engine_is_asked_again_under_other_engine_settings(world: World) -> None:
    poison = read_manifest(world.root, "a")[0].window_id

    def asked(request: Request) -> None:
        if request.video_id.startswith(poison):
            raise PoisonWindow("vLLM 1")

    world.run(engine=StandIn(asked), engine_settings="vLLM 1")
    world.run(engine_settings="vLLM 2")
    assert world.asked == {1: 1, 2: 1}
    row = read_captions(world.root, STAGE1.name, "a")[0]
    assert (row.status, row.engine_settings) == (Status.OK, "vLLM 2")


def limited(context: int) -> Recipe:
    return Recipe(engine={"max_model_len": context}, generation=SamplingParams(max_output_tokens=64))


def with_context(world: World, context: int, **how: Any) -> Log:
    """A run whose engine has this context, as the recipe says."""
    return world.run(engine=StandIn(world.count, context=context), recipe=limited(context), **how)


@pytest.fixture
def long_and_short(world: World) -> World:
    """Beside the three clips one whose windows take more tokens."""
    (world.folder / "shards" / "a" / "long.mp4").write_bytes(
        moving_video(120, size=(96, 64), options={"preset": "ultrafast"})
    )
    clips = probe_clips(SANDBOX, world.source, find_shard(world.source, "a"), Windowing(120, 60))
    publish_manifest(world.root, "a", (row for clip in clips for row in clip.rows), {})
    return world


STAGE2_TOKENS = len(Recipe().prompt.stage2_text("")) + 64 + 64
"""Of a window beside its video: prompt, stage-1 caption of the stand-in at most, answer."""


def test_a_longer_context_makes_the_windows_again_that_the_shorter_one_reduced_and_no_others(
    long_and_short: World,
) -> None:
    world, short = long_and_short, STAGE2_TOKENS + 60
    with_context(world, short)
    reduced = {row.clip_key for row in read_captions(world.root, STAGE2.name, "a") if row.reductions}
    assert reduced == {"long.mp4"}
    with_context(world, short)
    assert world.asked == {}
    with_context(world, 4096)
    assert world.asked[2] == 1
    assert not any(row.reductions for row in read_captions(world.root, STAGE2.name, "a"))
    with_context(world, 8192)
    assert world.asked == {}


def test_a_shorter_context_makes_the_windows_again_that_it_reduces_and_no_others(long_and_short: World) -> None:
    world, short = long_and_short, STAGE2_TOKENS + 60
    with_context(world, 4096)
    with_context(world, short)
    assert world.asked[2] == 1
    rows = read_captions(world.root, STAGE2.name, "a")
    assert {row.clip_key for row in rows if row.reductions} == {"long.mp4"}
    stage1 = {row.key: row.fingerprint for row in read_captions(world.root, STAGE1.name, "a")}
    assert {row.key: row.stage1_fingerprint for row in rows} == stage1


def test_a_window_without_room_is_asked_again_when_the_context_has_some(world: World) -> None:
    with_context(world, 100)
    assert {row.error_kind for row in read_captions(world.root, STAGE1.name, "a")} == {"too_long"}
    with_context(world, 4096)
    assert world.asked == {1: 6, 2: 6}


def test_a_higher_output_limit_makes_the_captions_again_that_were_cut_off_and_no_others(world: World) -> None:
    def run(limit: int) -> None:
        world.run(recipe=Recipe(generation=SamplingParams(max_output_tokens=limit), regenerations=0))

    run(10)
    reasons = Counter(row.finish_reason for row in read_captions(world.root, STAGE1.name, "a"))
    assert set(reasons) == {"stop", "length"}
    run(10)
    assert world.asked == {}
    run(16)
    assert world.asked[1] == reasons["length"]
    run(512)
    assert world.asked == {}
    run(10)
    assert world.asked[1] == reasons["length"]


def test_a_window_that_was_still_reasoning_is_asked_again_with_a_higher_output_limit(world: World) -> None:
    def asked(request: Request) -> None:
        if request.generation.max_output_tokens < 16:
            raise ReasoningCutOff(100, request.generation.max_output_tokens)

    short = Recipe(generation=SamplingParams(max_output_tokens=1))
    world.run(engine=StandIn(asked), recipe=short, max_attempts=1)
    assert {row.error_kind for row in read_captions(world.root, STAGE1.name, "a")} == {"reasoning_cut_off"}
    world.run(recipe=short, max_attempts=1)
    assert world.asked == {}
    world.run(recipe=Recipe(generation=SamplingParams(max_output_tokens=64)), max_attempts=1)
    assert world.asked == {1: 6, 2: 6}


def test_larger_frames_make_the_windows_again_that_were_scaled_down_and_no_others(world: World) -> None:
    small = replace(Recipe().variant.pixels, min_pixels=4 * 28**2, max_pixels=6 * 28**2, total_pixels=48 * 28**2)
    large = replace(small, max_pixels=9 * 28**2, total_pixels=200 * 28**2)
    shown: dict[str, tuple[int, ...]] = {}
    for limits in (small, large):
        recipe = Recipe(variant=replace(Recipe().variant, pixels=limits))
        world.run(recipe=recipe)
        rows = read_captions(world.root, STAGE1.name, "a")
        frames = {row.window_id: (len(row.frame_indices or ()), row.frame_height, row.frame_width) for row in rows}
        changed = [one for one, size in frames.items() if shown.get(one) != size]
        assert world.asked[1] == len(changed)
        shown = frames  # type: ignore[assignment]
    assert 0 < len(changed) < len(shown)


def test_captions_of_earlier_releases_are_taken_over(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(frames=FrameSampling(fps=1.0))
    with monkeypatch.context() as earlier:
        earlier.setattr(
            Recipe,
            "fingerprint",
            lambda self, stage, window, caption=None, **_: self.former_fingerprint(stage, window, caption),
        )
        world.run(recipe=recipe)
    former = {row.fingerprint for row in read_captions(world.root, STAGE2.name, "a")}
    world.run(recipe=recipe)
    assert world.asked == {}
    assert {row.fingerprint for row in read_captions(world.root, STAGE2.name, "a")} == former


def test_stage_2_alone_shows_the_frames_that_a_joint_run_shows_where_the_context_is_short(
    long_and_short: World,
) -> None:
    world, short = long_and_short, STAGE2_TOKENS + 60
    with_context(world, short)
    joint = {table: world.rows(table) for table in BOTH}
    for table in BOTH:
        world.root.remove(f"{table}/shard=a/captions.parquet")
    with_context(world, short, stages=(STAGE1,))
    with_context(world, short, stages=(STAGE2,))
    assert {table: world.rows(table) for table in BOTH} == joint


def test_stage_2_alone_takes_up_what_was_published(world: World) -> None:
    world.run(stages=(STAGE1,))
    assert world.asked == {1: 6}
    world.run(stages=(STAGE2,))
    assert world.asked == {2: 6}
    world.run(stages=(STAGE2,))
    assert world.asked == {}


class OneByOne(StandIn):
    """Takes a window when the one before it is done."""

    capacity = replace(StandIn.capacity, windows=1)


def stopped(world: World, after: int, **how: Any) -> None:
    """A run that is canceled after some answers."""

    async def run() -> None:
        answers = asyncio.Event()

        def asked(request: Request) -> None:
            world.count(request)
            if world.asked.total() > after:
                answers.set()

        running = asyncio.create_task(world.captions(engine=OneByOne(asked, seconds=0.02), **how))
        await answers.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(run())


@pytest.mark.parametrize(("after", "done"), [(1, 0), (5, 2), (9, 4), (11, 5)])
def test_a_run_that_was_told_to_stop_goes_on_where_it_was(world: World, after: int, done: int) -> None:
    stopped(world, after)
    assert not world.root.exists("stage2_captions/shard=a/captions.parquet")
    log = world.run()
    assert log.failures == log.skips == {}
    assert world.asked == {1: 6 - done, 2: 6 - done}
    assert log.tables["a"][STAGE2.name].reused == done
    assert world.left_over() == []
    undisturbed = {table: world.rows(table) for table in BOTH}
    for table in BOTH:
        world.root.remove(f"{table}/shard=a/captions.parquet")
    world.run()
    assert world.asked == {1: 6, 2: 6}
    assert {table: world.rows(table) for table in BOTH} == undisturbed


def test_checkpoints_of_another_recipe_are_ignored_and_removed(world: World) -> None:
    stopped(world, 9, recipe=Recipe(variant=replace(Recipe().variant, revision="another")))
    assert world.left_over() != []
    world.run()
    assert world.asked == {1: 6, 2: 6}
    assert world.left_over() == []


def test_a_shard_that_another_run_holds_is_skipped_with_the_holder_named(world: World) -> None:
    world.add_clips("b", "one")
    with Leases(world.root, "run 7") as leases:
        lease = leases.acquire("a")
        log = world.run("a", "b")
        assert "run 7" in log.skips["a"]
        assert set(log.tables) == {"b"}
        leases.release(lease)
    assert world.run().skips == {}


def test_of_two_runs_at_once_one_captions_the_shard(world: World) -> None:
    async def both() -> list[Log]:
        return await asyncio.gather(*(world.captions(engine=StandIn(world.count, seconds=0.05)) for _ in range(2)))

    one, other = asyncio.run(both())
    assert [set(log.tables) | set(log.skips) for log in (one, other)] == [{"a"}, {"a"}]
    assert len(one.tables) + len(other.tables) == 1
    assert world.asked == {1: 6, 2: 6}
    assert len(world.rows(STAGE2.name)) == 6


def test_the_next_try_of_a_run_need_not_wait(world: World) -> None:
    Leases(world.root, "run 7").acquire("a")  # and dies without a word
    assert "run 7" in world.run(owner="run 8").skips["a"]
    assert set(world.run(owner="run 7").tables) == {"a"}


def test_a_run_whose_shard_was_taken_over_publishes_nothing(world: World) -> None:
    async def run() -> Log:
        taken = False

        def asked(request: Request) -> None:
            nonlocal taken
            if not taken:
                taken = True
                Leases(world.root, "run 7").acquire("a")

        return await world.captions(engine=StandIn(asked), owner="run 7")

    log = asyncio.run(run())
    assert "claimed by run 7" in log.failures["a"]
    assert not world.root.exists("stage1_captions/shard=a/captions.parquet")


def test_finished_rows_are_kept_as_often_as_is_asked(world: World) -> None:
    begun = 0

    def asked(request: Request) -> None:
        nonlocal begun
        if request.stage == 1:
            expected = 2 * (begun // 2)  # a part for each stage
            begun += 1
            for _ in range(100):  # it is written beside the next window
                if len(world.left_over()) == expected:
                    return
                time.sleep(0.1)
            raise AssertionError(f"{world.left_over()} before window {begun}")

    world.run(engine=OneByOne(asked), checkpoint_rows=2)
    assert begun == 6


def blocking(world: World, path: str) -> StandIn:
    """An engine that, once asked, puts a folder where a file will be written: not even root can replace it."""

    def asked(request: Request) -> None:
        Path(world.root.full(path), "something").mkdir(parents=True, exist_ok=True)

    return StandIn(asked)


def test_a_checkpoint_that_cannot_be_written_stops_nothing(world: World) -> None:
    part = f"{checkpoint_folder('a')}/000001-000000-stage1_captions.parquet"
    log = world.run(engine=blocking(world, part), checkpoint_rows=1)
    assert "a checkpoint could not be written" in log.warnings[0]
    assert "checkpoints could not be removed" in log.warnings[-1]
    assert log.tables["a"][STAGE2.name].reused == 0
    assert len(world.rows(STAGE2.name)) == 6


def test_what_could_not_be_published_is_kept_for_the_next_run(world: World) -> None:
    table = "stage2_captions/shard=a/captions.parquet"
    assert "cannot write" in world.run(engine=blocking(world, table)).failures["a"]
    shutil.rmtree(world.root.full(table))
    world.run()
    assert world.asked == {}
    assert len(world.rows(STAGE2.name)) == 6
