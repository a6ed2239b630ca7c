"""Tests of trials of a recipe on a sample of a shard."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.recipe_file import built_in, read_recipe
from caption_assets.captioning.stages import StageGraph
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.commands.try_prompt import ShardSample, make_trial
from caption_assets.report.trial import Trial, report_trial, trial_page
from caption_assets.sources.manifest import probe_clips
from caption_assets.sources.shard import find_shard
from caption_assets.store.previews import Preview
from caption_assets.store.root import Root
from caption_assets.store.tables import TableError, publish_manifest
from caption_assets.video.window import Windowing
from tests.captioning.fake_engine import FakeEngine, start_fake_engine
from tests.captioning.harness import Harness
from tests.cli import run_cli
from tests.conftest import SANDBOX, RunAsync, Truth
from tests.recipes import write_recipe
from tests.stages import GENERAL, STAGE1, STAGE2

BOTH = [STAGE1.name, STAGE2.name]


class TrialHarness(Harness):
    """A harness that makes trials."""

    def trial(self, graph: StageGraph, *stages: str, windows: int = 20) -> tuple[Trial, dict[str, Preview]]:
        """The trial of stages on shard ``a``, by default of all, and its previews."""
        self.requests.clear()
        self.engines = 0
        recipe = Recipe(graph=graph)
        shown = [stage for stage in recipe.stages if stage.name in stages or not stages]
        sample = ShardSample.of(self.root, self.source, "a", windows)
        made = make_trial(sample, recipe, shown, SANDBOX, self._open_engine, lambda _: None)
        trial, previews = asyncio.run(made)
        return trial, dict(previews)

    def _open_engine(self, recipe: Recipe) -> AbstractAsyncContextManager[EngineSupervisor]:
        return EngineSupervisor(lambda: start_fake_engine(FakeEngine(self.count), self.count_engine))


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> TrialHarness:
    """A captioned shard of three clips with two windows each. Trials write nothing to it."""
    harness = TrialHarness(tmp_path_factory.mktemp("trial"))
    harness.add_clips("a", "one", "two", "three")
    harness.run()
    return harness


def recipe_file(folder: Path, **prompts: str) -> StageGraph:
    """A recipe with four stages, of which two are stored."""
    return read_recipe(str(write_recipe(folder, **{"stage1": STAGE1.prompt, "stage2": STAGE2.prompt, **prompts})))


def kinds(trial: Trial) -> dict[str, dict[str, int]]:
    return {one.table: dict(one.statistics.kinds) for one in trial.comparisons}


def files(root: Root) -> Sequence[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in Path(root.full("")).rglob("*") if path.is_file())


@pytest.mark.fast
def test_sample_is_captioned_under_the_recipe_without_a_write_to_the_root(
    harness: TrialHarness, tmp_path: Path
) -> None:
    before = files(harness.root)
    trial, previews = harness.trial(recipe_file(tmp_path, stage1="What is it?"), *BOTH, windows=4)
    assert (len(trial.window_ids), trial.windows) == (4, 6)
    assert kinds(trial) == {name: {"changed": 4} for name in BOTH}
    assert (harness.requests, harness.engines) == (Counter({1: 4, 2: 4}), 1)
    assert previews.keys() == set(trial.window_ids)
    assert files(harness.root) == before


@pytest.mark.fast
def test_stored_captions_with_the_same_fingerprint_are_reused(harness: TrialHarness, tmp_path: Path) -> None:
    trial, _ = harness.trial(recipe_file(tmp_path, stage2="Go beyond {stage1_captions}"), *BOTH, windows=3)
    assert harness.requests == Counter({2: 3})
    assert kinds(trial) == {STAGE1.name: {}, STAGE2.name: {"changed": 3}}
    assert [one.left_out[0][1] for one in trial.comparisons] == ["3", "0"]


@pytest.mark.fast
def test_recipe_of_the_stored_captions_needs_no_engine(harness: TrialHarness) -> None:
    trial, _ = harness.trial(GENERAL)
    assert harness.engines == 0
    assert [one.pairs for one in trial.comparisons] == [[], []]


@pytest.mark.fast
def test_differing_stages_are_named(harness: TrialHarness, tmp_path: Path) -> None:
    graph = recipe_file(tmp_path)
    assert harness.trial(graph, windows=1)[0].only_new == ["attributes", "alignment"]
    other = StageGraph("other", (GENERAL.stage(STAGE1.name),))
    assert harness.trial(other, windows=1)[0].only_stored == [STAGE2.name]


@pytest.mark.fast
def test_page_shows_windows_in_order_with_all_stages(harness: TrialHarness, tmp_path: Path) -> None:
    trial, _ = harness.trial(recipe_file(tmp_path, stage1="What is it?"), windows=2)
    page = trial_page(trial)
    assert [row.window_id for row in page.rows] == [one for one in trial.window_ids for _ in range(4)]
    assert [row.facets[0] for row in page.rows[:4]] == [["stage 1"], ["stage 2"], ["attributes"], ["alignment"]]
    assert page.rows[0].position.startswith("stage 1, window ")
    stage1, _, attributes, alignment = page.rows[:4]
    prompts = [dict(page.provenance[side.provenance or 0])["Prompt"] for side in stage1.sides]
    assert prompts == [f"general: {STAGE1.prompt}", "four: What is it?"]
    assert [side.missing for side in attributes.sides] == ["no stored caption", None]
    assert (attributes.sides[1].is_json, len(alignment.sides[1].choices)) == (True, 2)


@pytest.mark.fast
def test_stage_alone_is_compared_with_what_it_needs_captioned(harness: TrialHarness, tmp_path: Path) -> None:
    trial, _ = harness.trial(recipe_file(tmp_path, stage1="What is it?"), STAGE2.name, windows=2)
    assert harness.requests == Counter({1: 2, 2: 2})
    assert kinds(trial) == {STAGE2.name: {"changed": 2}}


@pytest.mark.fast
def test_report_prints_each_stage_and_the_page(
    harness: TrialHarness, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trial, previews = harness.trial(recipe_file(tmp_path, stage2="Say more than {stage1_captions}"), windows=2)
    page = tmp_path / "page.html"
    report_trial(trial, lambda window_ids: previews, page)
    printed = capsys.readouterr().out
    assert printed.startswith("2 of 6 windows of a\nA: stored captions\nB: recipe four\n")
    assert re.search(r"stage1_captions\n *stored captions that the recipe keeps +2", printed)
    assert re.search(r"stage2_captions\n *rows in both +2", printed)
    assert "stages of the recipe without stored captions: attributes, alignment\n" in printed
    assert printed.endswith(f"page of both: {page}\n")
    assert page.read_text().startswith("<!doctype html>")


@pytest.mark.fast
def test_shard_without_a_manifest_is_an_error(harness: TrialHarness) -> None:
    (harness.folder / "shards" / "b").mkdir(exist_ok=True)
    with pytest.raises(TableError, match="materialize clip_manifest for shard 'b' first"):
        ShardSample.of(harness.root, harness.source, "b", 1)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("general", "--shard", "x"), r"shard 'x' is not in the source .*: a"),
        (("nothing", "--shard", "a"), "unknown recipe 'nothing': choose one of"),
        (("general", "--shard", "a", "--stage", "short"), r"the recipe 'general' has no stage 'short': use stage1_c"),
    ],
)
def test_wrong_argument_is_one_message(
    arguments: tuple[str, ...], message: str, harness: TrialHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPTION_ROOT", str(harness.folder / "root"))
    monkeypatch.setenv("CAPTION_SOURCE", str(harness.folder / "shards"))
    assert re.match(f"error: .*{message}", str(run_cli("try-prompt", *arguments)))


@pytest.mark.engine
def test_trial_with_the_engine(
    run_async: RunAsync[tuple[Trial, Mapping[str, Preview]]],
    supervisor: EngineSupervisor,
    sample_data: Path,
    truth: Truth,
    tmp_path: Path,
) -> None:
    @asynccontextmanager
    async def running(_: Recipe) -> AsyncIterator[EngineSupervisor]:
        yield supervisor

    source, root = Root.open(str(sample_data / "shards")), Root.open(str(tmp_path))
    clips = probe_clips(SANDBOX, source, find_shard(source, "sample-folder"), Windowing())
    publish_manifest(root, "sample-folder", (row for clip in clips for row in clip.rows), {})
    sample, recipe = ShardSample.of(root, source, "sample-folder", 3), Recipe(graph=built_in("sample"))
    trial, previews = run_async(make_trial(sample, recipe, recipe.stages, SANDBOX, running, lambda _: None))
    assert trial.only_new == [stage.name for stage in recipe.stages]
    assert previews.keys() == set(trial.window_ids)
    for comparison in trial.comparisons:
        made = [pair.b for pair in comparison.pairs if pair.b]
        right = [truth["sample-folder"][row.clip_key][row.window_index or 0][comparison.table] for row in made]
        assert sum(row.caption == answer for row, answer in zip(made, right, strict=True)) >= 1, comparison.table
