"""Tests of successive runs over a shard with stages of each output, with a fake engine."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from caption_assets.captioning.output import ChoiceOutput, JsonOutput, Output
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.request import Request
from caption_assets.captioning.stages import Stage, StageGraph
from caption_assets.store.tables import table_path
from tests.captioning.fake_engine import SequentialEngine
from tests.captioning.harness import Harness

pytestmark = pytest.mark.fast

SHOTS = {
    "type": "object",
    "properties": {"camera": {"type": "string"}, "shots": {"type": "array", "items": {"type": "integer"}}},
}
STAGES = (
    Stage("brief", "Describe the video."),
    Stage("long", "Say more than {brief}"),
    Stage("structured", "Name the shots.", JsonOutput(SHOTS)),
    Stage("alignment", "Does {long} fit?", ChoiceOutput(("yes", "no"), "yes")),
    Stage("rewrite", "Join {long} and {structured}", video=False),
)
RECIPE = Recipe(graph=StageGraph("test", STAGES))


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    """One shard of three clips with two windows each."""
    harness = Harness(tmp_path)
    harness.add_clips("a", "one", "two", "three")
    return harness


def tables(harness: Harness) -> dict[str, list[dict[str, Any]]]:
    return {stage.name: harness.rows(stage.name) for stage in STAGES}


def cancel_after(harness: Harness, requests: int) -> None:
    """Start a run with one window at a time and cancel it at a request. At most three are in flight then."""

    async def run() -> None:
        enough, counted = asyncio.Event(), Counter[str]()

        def on_request(request: Request) -> None:
            counted["requests"] += 1
            if counted["requests"] == requests:
                enough.set()

        engine = SequentialEngine(on_request, seconds=0.01)
        running = asyncio.create_task(harness.caption(engine=engine, recipe=RECIPE, checkpoint_rows=1))
        await enough.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(run())


@pytest.mark.parametrize("requests", [1, 8, 15, 22, 29])
def test_canceled_and_resumed_run_ends_in_the_same_tables(harness: Harness, requests: int) -> None:
    harness.run(recipe=RECIPE)
    undisturbed = tables(harness)
    for stage in STAGES:
        harness.root.remove(f"{stage.name}/shard=a/captions.parquet")
    cancel_after(harness, requests)
    harness.run(recipe=RECIPE)
    rest = 6 * len(STAGES) - requests
    assert rest < harness.requests.total() <= rest + 3
    assert tables(harness) == undisturbed
    assert harness.checkpoint_files() == []


def test_publication_of_one_stage_keeps_the_checkpoints_of_the_others(harness: Harness) -> None:
    cancel_after(harness, 22)
    harness.run(recipe=RECIPE, stages=STAGES[:1])
    rest = harness.requests.total()
    assert {name.removesuffix(".parquet").rpartition("-")[2] for name in harness.checkpoint_files()} == {
        stage.name for stage in STAGES[1:]
    }
    harness.run(recipe=RECIPE)
    rest += harness.requests.total()
    assert 8 < rest <= 8 + 3
    assert harness.checkpoint_files() == []


@pytest.mark.parametrize(
    ("changed", "requests"),
    [("brief", {1: 6, 2: 6, 4: 6, 5: 6}), ("structured", {3: 6, 5: 6}), ("alignment", {4: 6}), ("rewrite", {5: 6})],
)
def test_changed_prompt_captions_its_stage_and_those_that_need_it(
    harness: Harness, changed: str, requests: dict[int, int]
) -> None:
    harness.run(recipe=RECIPE)
    stages = tuple(
        replace(stage, prompt=f"{stage.prompt} Please.") if stage.name == changed else stage for stage in STAGES
    )
    harness.run(recipe=Recipe(graph=StageGraph("test", stages)))
    assert harness.requests == requests


def test_changed_schema_or_choices_caption_their_stage_again(harness: Harness) -> None:
    harness.run(recipe=RECIPE)
    outputs: dict[str, Output] = {
        "structured": JsonOutput({**SHOTS, "required": ["camera"]}),
        "alignment": ChoiceOutput(("yes", "no", "unclear"), "yes"),
    }
    stages = tuple(replace(stage, output=outputs.get(stage.name, stage.output)) for stage in STAGES)
    harness.run(recipe=Recipe(graph=StageGraph("test", stages)))
    assert harness.requests == {3: 6, 4: 6}


def test_another_score_asks_no_question_again(harness: Harness) -> None:
    harness.run(recipe=RECIPE)
    stages = tuple(
        replace(stage, output=ChoiceOutput(("yes", "no"), "no")) if stage.name == "alignment" else stage
        for stage in STAGES
    )
    recipe = Recipe(graph=StageGraph("test", stages))
    assert recipe.version(stages[3]) != RECIPE.version(STAGES[3])
    harness.run(recipe=recipe)
    assert harness.requests == {}
    rows = pq.ParquetFile(harness.root.full(table_path("alignment", "a"))).read().to_pylist()
    assert [row["score"] for row in rows] == [row["probabilities"]["no"] for row in rows]
