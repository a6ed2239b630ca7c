"""Tests of stages from files to published tables, on the session's engine: each output, failures, and resumed runs."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caption_assets.captioning.caption_run import CaptionRun
from caption_assets.captioning.engine import CaptionEngine
from caption_assets.captioning.output import ChoiceOutput, JsonOutput
from caption_assets.captioning.prefix_cache import NO_HITS, CacheHits
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.request import Completion, Request
from caption_assets.captioning.sampling import DETERMINISTIC
from caption_assets.captioning.shard_queue import caption_shards
from caption_assets.captioning.stages import Stage, StageGraph
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.sources.manifest import probe_clips
from caption_assets.sources.shard import find_shard
from caption_assets.store.root import Root
from caption_assets.store.table_file import read_file_metadata
from caption_assets.store.tables import Status, publish_manifest, read_captions, table_path
from caption_assets.video.window import Windowing
from tests.captioning.harness import VARYING_COLUMNS
from tests.captioning.run_events import RunEvents
from tests.conftest import SANDBOX, RunAsync, Truth

pytestmark = pytest.mark.engine

RECIPE = Recipe(generation=DETERMINISTIC)
"""The sample model's own recipe: two captions, JSON, a choice, and a rewrite without video."""
SHARD = "sample-tar"


class CaptionShard:
    """Runs over one sample shard, each with a root of its own."""

    def __init__(self, supervisor: EngineSupervisor, run_async: RunAsync[Any], source: Path, folder: Path) -> None:
        self.supervisor = supervisor
        self._run_async = run_async
        self._source = Root.open(str(source))
        self._folder = folder
        self._manifest = list(probe_clips(SANDBOX, self._source, find_shard(self._source, SHARD), Windowing()))

    def root(self, name: str, clips: int | None = None) -> Root:
        """A root with the manifest of the shard's first clips."""
        root = Root.open(str(self._folder / name))
        publish_manifest(root, SHARD, (row for clip in self._manifest[:clips] for row in clip.rows), {})
        return root

    def run(self, root: Root, recipe: Recipe, supervisor: EngineSupervisor | None = None) -> None:
        """Caption the shard."""
        self._run_async(self.caption(root, recipe, supervisor))

    async def caption(self, root: Root, recipe: Recipe, supervisor: EngineSupervisor | None = None) -> None:
        """The coroutine of ``run``."""
        events = RunEvents()
        run = CaptionRun(root, self._source, recipe, checkpoint_rows=2)
        await caption_shards(nullcontext(supervisor or self.supervisor), SANDBOX, run, [SHARD], [events])
        assert set(events.tables) == {SHARD}, events.failures

    def cancel_after(self, root: Root, recipe: Recipe, answers: int) -> None:
        """Start a run and cancel it after a number of answers."""

        async def run() -> None:
            enough = asyncio.Event()
            counting = CountingSupervisor(self.supervisor, lambda count: enough.set() if count == answers else None)
            running = asyncio.create_task(self.caption(root, recipe, counting))
            await enough.wait()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

        self._run_async(run())


class CountingSupervisor(EngineSupervisor):
    """A supervisor of the session's engine that counts its answers."""

    def __init__(self, supervisor: EngineSupervisor, on_answer: Callable[[int], object] = lambda _: None) -> None:
        self._supervisor = supervisor
        self._on_answer = on_answer
        self.answers: Counter[int] = Counter()
        """Number of answers, by number of the stage."""
        self.crashes = 0

    @property
    def engine(self) -> CaptionEngine:
        return self._supervisor.engine

    async def complete(self, request: Request) -> Completion:
        answer = await self._supervisor.complete(request)
        self.answers[request.stage] += 1
        self._on_answer(self.answers.total())
        return answer


@pytest.fixture(scope="module")
def shard(
    supervisor: EngineSupervisor,
    run_async: RunAsync[Any],
    sample_data: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> CaptionShard:
    return CaptionShard(supervisor, run_async, sample_data / "shards", tmp_path_factory.mktemp("stages"))


@pytest.fixture(scope="module")
def published(shard: CaptionShard) -> Root:
    """The root of a run of the sample model's recipe."""
    root = shard.root("published")
    shard.run(root, RECIPE)
    return root


def table(root: Root, stage: str) -> pa.Table:
    return pq.read_table(root.full(table_path(stage, SHARD)))


def ok_rows(root: Root, stage: str) -> list[dict[str, Any]]:
    return [row for row in table(root, stage).to_pylist() if row["status"] == Status.OK]


@pytest.fixture(scope="module")
def answers(truth: Truth) -> dict[str, list[str]]:
    """The correct answers about the readable windows of the shard, by stage."""
    windows = [window for _, found in sorted(truth[SHARD].items()) for window in found]
    return {stage.name: [window[stage.name] for window in windows] for stage in RECIPE.stages}


def share_right(rows: list[dict[str, Any]], right: list[str]) -> float:
    return [row["caption"] == text for row, text in zip(rows, right, strict=True)].count(True) / len(right)


def test_json_is_stored_as_text_and_typed(published: Root, answers: dict[str, list[str]]) -> None:
    names = ("shape", "colour", "size", "motion", "background")
    kind = pa.struct([(name, pa.string()) for name in names])
    assert table(published, "attributes").schema.field("fields").type == kind
    rows = ok_rows(published, "attributes")
    assert [row["fields"] for row in rows] == [json.loads(row["caption"]) for row in rows]
    assert share_right(rows, answers["attributes"]) >= 0.95


def test_choice_is_stored_with_its_probabilities_and_score(published: Root, answers: dict[str, list[str]]) -> None:
    rows = ok_rows(published, "alignment")
    for row in rows:
        probabilities = row["probabilities"]
        assert row["choice"] == row["caption"] == max(probabilities, key=probabilities.__getitem__)
        assert row["probability"] == probabilities[row["choice"]]
        assert row["score"] == probabilities["yes"]
        assert sum(probabilities.values()) == pytest.approx(1)
        assert (row["finish_reason"], row["output_tokens"], row["attempts"]) == ("stop", 1, 1)
    assert share_right(rows, answers["alignment"]) >= 0.95


def test_text_only_stage_rewrites_without_video(published: Root, answers: dict[str, list[str]]) -> None:
    rows = ok_rows(published, "short")
    assert share_right(rows, answers["short"]) >= 0.95
    assert {(row["frame_indices"], row["frame_fps"], row["frame_width"]) for row in rows} == {(None, None, None)}
    whole = ok_rows(published, "alignment")
    assert max(row["prompt_tokens"] for row in rows) < min(row["prompt_tokens"] for row in whole) / 2


def test_rows_name_the_rows_that_they_need(published: Root) -> None:
    assert "upstream_fingerprints" not in table(published, "attributes").column_names
    second = [row["fingerprint"] for row in ok_rows(published, "stage2_captions")]
    for name in ("alignment", "short"):
        assert [row["upstream_fingerprints"] for row in ok_rows(published, name)] == [
            {"stage2_captions": fingerprint} for fingerprint in second
        ]


def test_unreadable_clip_has_a_failed_row_in_each_table(published: Root) -> None:
    for stage in RECIPE.stages:
        [failed] = [row for row in table(published, stage.name).to_pylist() if row["status"] == Status.FAILED]
        own = {"choice", "probability", "probabilities", "score", "fields", "caption"} & failed.keys()
        assert {failed[name] for name in own} == {None}


def test_later_stages_take_the_video_from_the_prefix_cache(published: Root) -> None:
    total = NO_HITS
    for name in ("stage2_captions", "attributes", "alignment"):
        hits = CacheHits.from_file_metadata(read_file_metadata(pq.ParquetFile(published.full(table_path(name, SHARD)))))
        assert hits.predicted > 0, name
        total += hits
    assert total.share >= 0.95, total.summary


def test_probabilities_are_those_of_the_models_logits(
    engine: CaptionEngine, run_async: RunAsync[Any], model_folder: Path
) -> None:
    import torch
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForImageTextToText.from_pretrained(model_folder, dtype=torch.float32)
    output = ChoiceOutput(("A", "B", "C", "D", "yes", "no"))
    tokens = [tokenizer.encode(choice) for choice in output.choices]
    for instruction in ("Is a red circle red?", "Which letter comes first?", "Describe what this video shows."):
        prompt = engine.render(instruction, video=False)
        request = Request("", None, prompt, Recipe().params(RECIPE.stages[-1]), stage=1, output=output)
        found = run_async(engine.complete(request))
        with torch.no_grad():
            logits = model(torch.tensor([tokenizer.encode(prompt)])).logits[0, -1]
        expected = torch.softmax(logits[torch.tensor(tokens).flatten()], 0).tolist()
        assert list(found.probabilities.values()) == pytest.approx(expected, abs=1e-4)
        assert (found.text, found.finish_reason) == (output.choices[expected.index(max(expected))], "stop")


def test_choices_of_different_numbers_are_answered_in_one_batch(
    engine: CaptionEngine, run_async: RunAsync[Any]
) -> None:
    prompt = engine.render("Which letter?", video=False)
    outputs = [ChoiceOutput(tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef"[:count])) for count in (2, 5, 32)] * 4

    async def answers() -> list[Completion]:
        requests = (Request("", None, prompt, RECIPE.generation, stage=1, output=output) for output in outputs)
        return await asyncio.gather(*map(engine.complete, requests))

    for output, answer in zip(outputs, run_async(answers()), strict=True):
        assert tuple(answer.probabilities or ()) == output.choices


# --- a recipe with failures


ATTRIBUTES, ALIGNMENT = RECIPE.stages[2:4]
COUNTS = {
    "type": "object",
    "properties": {
        "people": {"type": "integer", "minimum": 0, "maximum": 9},
        "moves": {"type": "boolean"},
        "marks": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2, "maxItems": 2},
        "light": {"anyOf": [{"enum": ["day", "night"]}, {"type": "null"}]},
    },
    "required": ["people", "moves", "marks", "light"],
    "additionalProperties": False,
}
ENDLESS = {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 100}
FAILING = Recipe(
    generation=DETERMINISTIC,
    graph=StageGraph(
        "failing",
        (
            RECIPE.stages[0],
            replace(ATTRIBUTES, sampling={"max_output_tokens": 12}),
            Stage("counts", "Count.", JsonOutput(COUNTS)),
            Stage("endless", "List them.", JsonOutput(ENDLESS), sampling={"max_output_tokens": 4}),
            Stage("too_long", "word " * 3000),
            Stage("after_endless", "Shorten {endless}", video=False),
            Stage("after_both", "Is {too_long} or {attributes} right?", ChoiceOutput(("yes", "no"))),
            Stage("independent", "Is {stage1_captions} right?", ChoiceOutput(("yes", "no"), "yes")),
        ),
    ),
)


@pytest.fixture(scope="module")
def failing(shard: CaptionShard) -> Root:
    """The root of a run over three clips."""
    root = shard.root("failing", clips=3)
    shard.run(root, FAILING)
    return root


def test_json_that_is_cut_off_is_retried_with_more_room(failing: Root) -> None:
    for row in table(failing, "attributes").to_pylist():
        assert (row["status"], row["finish_reason"]) == (Status.OK, "stop")
        assert row["fields"] == json.loads(row["caption"])
        assert 1 < row["attempts"] <= 4
        assert row["sampling"]["max_output_tokens"] == 12 * 2 ** (row["attempts"] - 1)


def test_json_that_the_model_has_not_learned_fits_its_schema_and_has_its_types(failing: Root) -> None:
    assert table(failing, "counts").schema.field("fields").type == pa.struct(
        [("people", pa.int64()), ("moves", pa.bool_()), ("marks", pa.list_(pa.string())), ("light", pa.string())]
    )
    for row in table(failing, "counts").to_pylist():
        assert row["fields"] == json.loads(row["caption"])


def test_json_that_stays_cut_off_fails_with_its_kind(failing: Root) -> None:
    for row in table(failing, "endless").to_pylist():
        assert (row["status"], row["error_kind"], row["caption"]) == (Status.FAILED, "json_cut_off", None)
        assert "was not complete after 32 tokens: raise the stage's max_output_tokens" in row["error"]
        assert row["attempts"] == 4  # 4, 8, 16 and 32 tokens


def test_failed_stage_fails_only_those_that_need_it(failing: Root) -> None:
    kinds = {
        stage.name: {row["error_kind"] for row in table(failing, stage.name).to_pylist()} for stage in FAILING.stages
    }
    assert kinds == {
        "stage1_captions": {None},
        "attributes": {None},
        "counts": {None},
        "endless": {"json_cut_off"},
        "too_long": {"too_long"},
        "after_endless": {"upstream_failed"},
        "after_both": {"upstream_failed"},
        "independent": {None},
    }
    [error] = {row["error"] for row in table(failing, "after_both").to_pylist()}
    assert error == "too_long failed for this window: see its row there"


# --- canceled runs


FOUR = replace(RECIPE, graph=StageGraph("four", RECIPE.stages[:4]))


def rows_of(root: Root) -> list[dict[str, Any]]:
    """The rows of all tables without the columns that vary. Probabilities vary a little with the batch."""
    rows = [asdict(row) for stage in FOUR.stages for row in read_captions(root, stage.name, SHARD)]
    return [{name: row[name] for name in row.keys() - VARYING_COLUMNS - {"probabilities"}} for row in rows]


def probabilities_of(root: Root) -> list[float]:
    rows = read_captions(root, ALIGNMENT.name, SHARD)
    return [share for row in rows for share in (row.probabilities or {}).values()]


def test_canceled_and_resumed_run_with_four_stages_ends_in_the_same_tables(shard: CaptionShard) -> None:
    undisturbed, resumed = shard.root("undisturbed"), shard.root("resumed")
    whole = CountingSupervisor(shard.supervisor)
    shard.run(undisturbed, FOUR, whole)
    for answers in (whole.answers.total() // 3, whole.answers.total() // 3):
        shard.cancel_after(resumed, FOUR, answers)
    rest = CountingSupervisor(shard.supervisor)
    shard.run(resumed, FOUR, rest)
    assert 0 < rest.answers.total() < whole.answers.total()
    assert rows_of(resumed) == rows_of(undisturbed)
    assert probabilities_of(resumed) == pytest.approx(probabilities_of(undisturbed), abs=1e-3)
