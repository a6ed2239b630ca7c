"""Small models of many families, given by folder: on real engines, or by vLLM's front end where that is enough."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from caption_assets.captioning.budget import FrameGrid
from caption_assets.captioning.engine import CaptionEngine, EngineConfig, start_engine
from caption_assets.captioning.recipe import Generation, Recipe
from caption_assets.captioning.recovery import EngineKeeper
from caption_assets.captioning.request import Completion, Request
from caption_assets.captioning.task import Captioned
from caption_assets.clips.window import Windowing
from caption_assets.models.variants import SAMPLE, find_variant
from caption_assets.store.tables import CaptionRow
from tests.captioning.families import FAMILIES
from tests.captioning.tasks import film_tasks
from tests.conftest import Ask, caption_all
from tests.videos import moving_video

SHORT, LONG = 1536, 16384
"""Context lengths, in tokens: a long window does not fit the first."""
OUTPUT = 32
CLIPS = {30: (240, (320, 180)), 10: (40, (176, 144)), 4: (120, (640, 360))}
"""Frames and size of the clips, by their frames per second."""
ENGINE = {**SAMPLE.engine, "max_num_batched_tokens": 2048}


def recipe_for(folder: Path) -> Recipe:
    variant = replace(find_variant(str(folder), "v1"), gpus=0)
    return Recipe(variant, generation=Generation(None, None, None, OUTPUT))


class Counting(EngineKeeper):
    """Notes for each request the predicted length of its prompt and the engine's count."""

    def __init__(self, engine: CaptionEngine) -> None:
        @asynccontextmanager
        async def running() -> AsyncIterator[CaptionEngine]:
            yield engine

        super().__init__(running)
        self.counts: list[tuple[int, int]] = []

    async def complete(self, request: Request) -> Completion:
        count, height, width, _ = request.frames.pixels.shape
        grid = FrameGrid(count, height, width)
        predicted = await self.engine.prompt_tokens(request.prompt, grid, request.frames.fps)
        answer = await super().complete(request)
        self.counts.append((predicted, answer.prompt_tokens))
        return answer


@dataclass(frozen=True)
class Result:
    engine_context: int
    captioned: dict[int, Captioned]
    """By the clips' frames per second."""
    counts: list[tuple[int, int]]


async def caption_clips(folder: Path) -> Result:
    recipe = recipe_for(folder)
    tasks = [
        film_tasks(moving_video(frames, size, fps=fps), Windowing(frames, frames))[0]
        for fps, (frames, size) in CLIPS.items()
    ]
    async with start_engine(folder, recipe, EngineConfig(arguments=ENGINE)) as engine, Counting(engine) as keeper:
        captioned = await caption_all(keeper, recipe, tasks)
        return Result(engine.context, dict(zip(CLIPS, captioned, strict=True)), keeper.counts)


def short(family: str, folder: Path) -> Path:
    FAMILIES[family](folder, SHORT)
    return folder


@pytest.fixture(scope="module", params=list(FAMILIES))
def short_context(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, ask: Ask[Any]) -> Result:
    """The clips, captioned by a model of short context on the real engine."""
    folder = tmp_path_factory.mktemp(request.param)
    FAMILIES[request.param](folder, SHORT)
    return ask(caption_clips(folder))  # type: ignore[no-any-return]


def rows(result: Result) -> Iterator[CaptionRow]:
    for done in result.captioned.values():
        yield done.stage1
        if done.stage2:
            yield done.stage2


@pytest.mark.engine
def test_the_context_is_that_of_the_models_own_files(short_context: Result) -> None:
    assert short_context.engine_context == SHORT


@pytest.mark.engine
def test_no_window_is_refused_that_can_be_made_to_fit(short_context: Result) -> None:
    # Random weights may say nothing at all, which is a failure of its own.
    assert {row.error_kind for row in rows(short_context)} <= {None, "empty_answer", "stage1_failed"}
