"""Tests of small models of many families, given by folder: on real engines, and with vLLM's front end alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from caption_assets.captioning.budget import FrameGrid
from caption_assets.captioning.decoding import SandboxDecoder
from caption_assets.captioning.engine import CaptionEngine, EngineConfig, start_engine
from caption_assets.captioning.planner import Planner
from caption_assets.captioning.prefix_cache import NO_HITS
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.request import Completion, Request
from caption_assets.captioning.sampling import DETERMINISTIC, SamplingParams
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.captioning.window_job import WindowJob
from caption_assets.models.variants import SAMPLE, find_variant
from caption_assets.store.tables import CaptionRow, Status
from caption_assets.video.window import Windowing
from tests.captioning.families import FAMILIES
from tests.captioning.front_end import start_front_end
from tests.captioning.window_jobs import video_jobs
from tests.conftest import SANDBOX, RunAsync, caption_all
from tests.stages import STAGE1, STAGE2
from tests.videos import moving_video

SHORT, LONG = 1536, 16384
"""Context lengths, in tokens. A long window does not fit the first."""
CLIPS = {30: (240, (320, 180)), 10: (40, (176, 144)), 4: (120, (640, 360))}
"""Frames and size of the clips, by their frames per second."""
OWN_SIZES = {"llava-onevision": (112, 112), "internvl": (56, 56)}
"""Height and width to which processors resize every frame."""
REASONING = ("qwen3.5",)
"""Families whose answers begin with reasoning, unless the template disables it."""
ENGINE = {**SAMPLE.engine, "max_num_batched_tokens": 2048}


@pytest.fixture(scope="module")
def jobs() -> list[WindowJob]:
    """One window of each clip."""
    return [
        video_jobs(moving_video(frames, size, fps=fps), Windowing(frames, frames), name=f"{fps}.mp4")[0]
        for fps, (frames, size) in CLIPS.items()
    ]


def write_model(family: str, folder: Path, context: int) -> Recipe:
    """Write a model to a folder and return a recipe for it."""
    import torch

    torch.manual_seed(0)
    FAMILIES[family](folder, context)
    return Recipe(find_variant(str(folder), "v1"), generation=SamplingParams(None, None, None, 32))


class CountingSupervisor(EngineSupervisor):
    """A supervisor that records the predicted and the counted length of each prompt."""

    def __init__(self, engine: CaptionEngine) -> None:
        @asynccontextmanager
        async def running() -> AsyncIterator[CaptionEngine]:
            yield engine

        super().__init__(running)
        self.counts: list[tuple[int, int]] = []

    async def complete(self, request: Request) -> Completion:
        assert request.frames
        count, height, width, _ = request.frames.pixels.shape
        grid = FrameGrid(count, height, width)
        text = self.engine.text_tokens(request.prompt)
        predicted = text + await self.engine.video_tokens(grid, request.frames.fps)
        answer = await super().complete(request)
        self.counts.append((predicted, answer.prompt_tokens))
        return answer


@dataclass(frozen=True)
class Result:
    family: str
    context: int
    captioned: list[WindowJob]
    counts: list[tuple[int, int]]
    reasoned: list[WindowJob]
    """The first stage of a reasoning model with reasoning enabled."""

    @property
    def rows(self) -> Iterator[CaptionRow]:
        for done in self.captioned:
            yield from (done.row(STAGE1), done.row(STAGE2))


async def caption_on_engine(
    family: str, folder: Path, context: int, jobs: list[WindowJob], arguments: Mapping[str, Any] = ENGINE
) -> Result:
    recipe = write_model(family, folder, context)
    async with start_engine(folder, recipe, EngineConfig(engine_args=arguments)) as engine:
        supervisor = CountingSupervisor(engine)
        async with supervisor:
            captioned = await caption_all(supervisor, recipe, jobs)
        reasoned = await reason(engine, recipe, jobs) if family in REASONING else []
        return Result(family, engine.context, captioned, supervisor.counts, reasoned)


async def reason(engine: CaptionEngine, recipe: Recipe, jobs: list[WindowJob]) -> list[WindowJob]:
    """Caption the clips in the first stage, on the same engine with reasoning enabled.

    Sampling is deterministic: random tokens would end the reasoning by chance.
    """
    generation = replace(DETERMINISTIC, max_output_tokens=32)
    thinking = replace(recipe, chat_template_kwargs={"enable_thinking": True}, generation=generation)
    other = CaptionEngine(engine._llm, thinking, EngineConfig())
    await other.check()
    supervisor = CountingSupervisor(other)
    async with supervisor:
        return await caption_all(supervisor, thinking, jobs, stages=(STAGE1,))


@pytest.fixture(scope="module", params=list(FAMILIES))
def on_engine(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    run_async: RunAsync[Any],
    jobs: list[WindowJob],
) -> Result:
    """The clips, captioned by a model of each family with a short context."""
    folder = tmp_path_factory.mktemp(request.param)
    return run_async(caption_on_engine(request.param, folder, SHORT, jobs))  # type: ignore[no-any-return]


@pytest.mark.engine
def test_family_captions_within_its_context_and_with_the_predicted_tokens(
    on_engine: Result,
) -> None:
    assert on_engine.context == SHORT
    assert on_engine.counts
    assert all(predicted == counted for predicted, counted in on_engine.counts)
    # Random weights may end an answer before its first word. No request is refused.
    assert {row.error_kind for row in on_engine.rows} <= {None, "empty_answer", "upstream_failed"}
    assert all(row.prompt_tokens and row.prompt_tokens < SHORT for row in on_engine.rows if row.status is Status.OK)


@pytest.mark.engine
def test_rows_store_the_frame_size_that_the_model_sees(on_engine: Result) -> None:
    captioned = [row for row in on_engine.rows if row.status is Status.OK]
    sizes = {(row.frame_height, row.frame_width) for row in captioned}
    if own := OWN_SIZES.get(on_engine.family):
        assert sizes <= {own}
    else:
        assert all(height and width and height % 28 * (height % 32) == 0 for height, width in sizes)


@pytest.mark.engine
def test_answer_cut_off_inside_its_reasoning_is_no_caption(on_engine: Result) -> None:
    """Random weights never end their reasoning."""
    kinds = {done.row(STAGE1).error_kind for done in on_engine.reasoned}
    assert kinds <= {"reasoning_cut_off", "empty_answer"}
    assert bool(on_engine.reasoned) == (on_engine.family in REASONING)
    assert all(done.row(STAGE1).caption is None for done in on_engine.reasoned)


@pytest.mark.nightly
def test_context_that_exceeds_the_memory_is_reduced(
    tmp_path: Path, run_async: RunAsync[Any], jobs: list[WindowJob]
) -> None:
    engine = {**ENGINE, "kv_cache_memory_bytes": 1 << 20}
    result = run_async(caption_on_engine("qwen2.5-vl", tmp_path, LONG, jobs, engine))
    assert 1024 < result.context < LONG
    assert result.counts
    assert all(predicted == counted < result.context for predicted, counted in result.counts)
    assert {row.error_kind for row in result.rows} <= {None, "empty_answer", "upstream_failed"}


@pytest.mark.engine
def test_stage_2_has_the_predicted_prefix_cache_hits(on_engine: Result) -> None:
    hits = sum((hits for done in on_engine.captioned for hits in done.hits.values()), NO_HITS)
    assert hits.cached == hits.predicted
    assert hits == NO_HITS or hits.is_hybrid == (on_engine.family == "qwen3.5")


@pytest.mark.nightly
@pytest.mark.parametrize("family", list(FAMILIES))
def test_family_captions_in_a_long_context(
    tmp_path: Path, run_async: RunAsync[Any], jobs: list[WindowJob], family: str
) -> None:
    result = run_async(caption_on_engine(family, tmp_path, LONG, jobs))
    assert result.context == LONG
    assert result.counts
    assert all(predicted == counted for predicted, counted in result.counts)
    assert {row.error_kind for row in result.rows} <= {None, "empty_answer", "upstream_failed"}


async def plan_and_prepare(
    front_end: CaptionEngine, recipe: Recipe, jobs: list[WindowJob]
) -> list[tuple[FrameGrid, int, int]]:
    """For each window its video, and the predicted and the actual length of its prompt."""
    supervisor, results = CountingSupervisor(front_end), []
    async with supervisor:
        with SandboxDecoder(SANDBOX) as decoder:
            planner = Planner(supervisor, recipe)
            for job in jobs:
                await planner.plan(job)
                assert job.problem is None
                grid = await planner.fit(job, STAGE1, job.whole)
                frames = await decoder.frames(job, grid)
                request = Request(uuid4().hex, frames, front_end.render("What is it?"), recipe.generation, 1)
                prepared = await front_end._prepare(request, with_pixels=True)
                text = front_end.text_tokens(request.prompt)
                predicted = text + await front_end.video_tokens(grid, frames.fps)
                results.append((grid, predicted, len(prepared["prompt_token_ids"])))
    return results


@pytest.mark.engine
@pytest.mark.parametrize("context", [SHORT, LONG])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_prompt_of_each_family_has_the_predicted_length_and_fits(
    tmp_path: Path, run_async: RunAsync[Any], jobs: list[WindowJob], family: str, context: int
) -> None:
    recipe = write_model(family, tmp_path, context)
    front_end = run_async(start_front_end(tmp_path, recipe, **{**ENGINE, "max_num_batched_tokens": 8192}))
    planned = run_async(plan_and_prepare(front_end, recipe, jobs))
    assert all(predicted == counted < context for _, predicted, counted in planned)
    if context == LONG:
        assert [grid.frames for grid, *_ in planned] == [16, 8, 60]


@pytest.mark.engine
@pytest.mark.parametrize("family", ["qwen3-vl", "llava-onevision"])
def test_video_is_fitted_to_what_the_engine_encodes_in_one_step(
    tmp_path: Path, run_async: RunAsync[Any], jobs: list[WindowJob], family: str
) -> None:
    recipe = write_model(family, tmp_path, LONG)
    front_end = run_async(start_front_end(tmp_path, recipe, **ENGINE))
    assert front_end.max_video_tokens < LONG
    planned = run_async(plan_and_prepare(front_end, recipe, jobs))
    text = front_end.text_tokens(front_end.render("What is it?"))
    assert all(counted - text <= front_end.max_video_tokens for *_, counted in planned)
