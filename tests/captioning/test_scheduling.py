"""Tests of the order in which the stages of windows run, with a fake engine whose answers the test controls."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caption_assets.captioning.budget import FrameGrid
from caption_assets.captioning.captioner import caption
from caption_assets.captioning.engine import EngineCrashed, EngineError
from caption_assets.captioning.output import TEXT, ChoiceOutput, JsonOutput, Output
from caption_assets.captioning.planner import SPARE_TOKENS, Planner
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.request import Completion, Request, RequestFailed
from caption_assets.captioning.sampling import SamplingParams
from caption_assets.captioning.stage_run import POISON_CRASHES
from caption_assets.captioning.stages import Stage, StageGraph
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.captioning.window_job import DECODE, WindowJob
from caption_assets.store.tables import Status
from caption_assets.video.decode import Frames
from tests.captioning.fake_engine import FakeEngine, SequentialEngine, start_fake_engine
from tests.captioning.test_recipe import WINDOW

pytestmark = pytest.mark.fast

YES_NO = ChoiceOutput(("yes", "no"), "yes")
WORD = JsonOutput({"type": "object", "properties": {"word": {"type": "string"}}})
OUTPUTS: list[Output] = [TEXT, WORD, YES_NO]


class BlackFrames:
    """A decoder whose frames are black. It counts the windows that it decodes."""

    decoded = 0

    async def frames(self, job: WindowJob, grid: FrameGrid) -> Frames:
        self.decoded += 1
        pixels = np.zeros((grid.frames, grid.height, grid.width, 3), np.uint8)
        return Frames(pixels, tuple(range(grid.frames)), 2.0)


class ControlledEngine(FakeEngine):
    """An engine that prefills and answers a request only when the test says so. Requests are named by their stage."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self._names = [stage.name for stage in recipe.stages]
        self.requests: dict[str, Request] = {}
        self._answers: dict[str, asyncio.Future[bool]] = {}

    async def complete(self, request: Request) -> Completion:
        name = self._names[request.stage - 1]
        self.requests[name] = request
        answer = self._answers[name] = asyncio.get_running_loop().create_future()
        if not await answer:
            raise RequestFailed("refused", "refused by the test")
        return await super().complete(request)

    async def waiting(self) -> set[str]:
        """Names of the stages whose requests have no answer yet, when nothing else can run."""
        for _ in range(100):
            await asyncio.sleep(0)
        return {name for name, answer in self._answers.items() if not answer.done()}

    def answer(self, *names: str) -> None:
        for name in names:
            self._answers[name].set_result(True)


def recipe_of(*stages: Stage) -> Recipe:
    return Recipe(graph=StageGraph("test", stages))


def job_of(recipe: Recipe, number: int = 0) -> WindowJob:
    return WindowJob(replace(WINDOW, window_index=number, window_id=f"w{number}"), list, recipe.stages, number=number)


async def run(engine: FakeEngine, recipe: Recipe, *jobs: WindowJob, decoder: BlackFrames | None = None) -> None:
    async def stream() -> Any:
        for job in jobs:
            yield job

    async def emit(job: WindowJob) -> None:
        pass

    started = engine.count if isinstance(engine, CrashingEngine) else lambda: None
    async with EngineSupervisor(lambda: start_fake_engine(engine, started)) as supervisor:
        await caption(supervisor, recipe, decoder or BlackFrames(), stream(), emit)


def test_independent_stages_run_at_once_when_the_first_request_is_prefilled() -> None:
    recipe = recipe_of(Stage("a", "A"), Stage("b", "B", WORD), Stage("c", "C", YES_NO))

    async def check() -> None:
        engine, job, decoder = ControlledEngine(recipe), job_of(recipe), BlackFrames()
        running = asyncio.create_task(run(engine, recipe, job, decoder=decoder))
        assert await engine.waiting() == {"a"}
        engine.requests["a"].on_prefilled()
        assert await engine.waiting() == {"a", "b", "c"}
        assert [engine.requests[name].is_cached for name in "abc"] == [False, True, True]
        assert len({request.video_id for request in engine.requests.values()}) == 1
        engine.answer("a", "b", "c")
        await running
        assert job.ok
        assert decoder.decoded == 1

    asyncio.run(check())


def test_failed_first_request_lets_the_next_stage_send_the_video() -> None:
    recipe = recipe_of(Stage("a", "A"), Stage("b", "B"))

    async def check() -> None:
        engine, job = ControlledEngine(recipe), job_of(recipe)
        running = asyncio.create_task(run(engine, recipe, job))
        assert await engine.waiting() == {"a"}
        engine._answers["a"].set_result(False)
        assert await engine.waiting() == {"a", "b"}
        assert not engine.requests["b"].is_cached
        engine.answer("a", "b")
        await running
        assert job.ok

    asyncio.run(check())


def test_stage_starts_when_the_stages_that_it_needs_have_rows() -> None:
    recipe = recipe_of(
        Stage("a", "A"),
        Stage("slow", "S"),
        Stage("b", "B {a}"),
        Stage("text", "T {b}", video=False),
        Stage("c", "{slow}"),
    )

    async def check() -> None:
        engine, job = ControlledEngine(recipe), job_of(recipe)
        running = asyncio.create_task(run(engine, recipe, job))
        await engine.waiting()
        engine.requests["a"].on_prefilled()
        assert await engine.waiting() == {"a", "slow"}
        engine.answer("a")
        assert await engine.waiting() == {"slow", "b"}
        engine.answer("b")
        assert await engine.waiting() == {"slow", "text"}
        assert engine.requests["text"].frames is None
        assert engine.requests["text"].video_id == ""
        assert engine.requests["text"].prompt == f"T {job.row(recipe.graph.stage('b')).caption}"
        engine.answer("text", "slow")
        assert await engine.waiting() == {"c"}
        engine.answer("c")
        await running
        assert job.ok

    asyncio.run(check())


def test_window_that_lacks_only_a_text_only_stage_is_not_decoded() -> None:
    recipe = recipe_of(Stage("a", "A"), Stage("text", "T {a}", video=False))

    async def check() -> None:
        whole, decoder = job_of(recipe), BlackFrames()
        await run(FakeEngine(), recipe, whole)
        rest = job_of(recipe)
        rest.rows["a"] = whole.rows["a"]
        await run(FakeEngine(), recipe, rest, decoder=decoder)
        assert (rest.ok, decoder.decoded, DECODE in rest.seconds) == (True, 0, False)
        assert rest.load.frame_bytes == 0
        assert rest.row(recipe.stages[1]) == whole.row(recipe.stages[1])

    asyncio.run(check())


def test_later_stages_have_higher_numbers_and_run_before_the_next_window_when_there_is_room_for_one() -> None:
    recipe = recipe_of(Stage("a", "A"), Stage("b", "B {a}"), Stage("text", "T {b}", video=False))
    order: list[tuple[int, str]] = []

    def on_request(request: Request) -> None:
        order.append((request.stage, request.video_id.split("-")[0]))

    asyncio.run(run(SequentialEngine(on_request), recipe, job_of(recipe), job_of(recipe, 1)))
    assert order == [(1, "w0"), (2, "w0"), (3, ""), (1, "w1"), (2, "w1"), (3, "")]


def test_load_of_a_window_is_the_worst_of_each_chain_of_stages() -> None:
    """Stages b and c may run at the same time, a and b not."""
    limits = {name: {"max_output_tokens": tokens} for name, tokens in (("a", 300), ("b", 100), ("c", 50))}
    recipe = recipe_of(
        Stage("a", "A", sampling=limits["a"]),
        Stage("b", "B {a}", sampling=limits["b"]),
        Stage("c", "Is it?", sampling=limits["c"]),
    )

    async def tokens(*rows: str) -> int:
        async with EngineSupervisor(lambda: start_fake_engine(FakeEngine())) as supervisor:
            job = job_of(recipe)
            finished = job_of(recipe)
            await run(FakeEngine(), recipe, finished)
            job.rows |= {name: finished.rows[name] for name in rows}
            await Planner(supervisor, recipe).plan(job)
            return job.load.tokens

    of_b = len("B ") + 300 + SPARE_TOKENS + 100
    of_c = len("Is it?") + 50
    assert asyncio.run(tokens()) == of_b + of_c
    assert asyncio.run(tokens("b")) == len("A") + 300 + of_c
    assert asyncio.run(tokens("a", "b")) == of_c


# --- crashes


class CrashingEngine(FakeEngine):
    """An engine that crashes on some videos."""

    def __init__(self, *windows: str) -> None:
        super().__init__()
        self._windows = windows
        self.engines = 0

    async def complete(self, request: Request) -> Completion:
        if request.video_id.split("-")[0] in self._windows:
            raise EngineCrashed("the engine crashed")
        return await super().complete(request)

    def count(self) -> None:
        self.engines += 1


def test_poison_window_crashes_the_engine_no_more_often_with_several_stages() -> None:
    recipe = recipe_of(
        Stage("a", "A"), Stage("b", "B", WORD), Stage("c", "C", YES_NO), Stage("text", "{a}", video=False)
    )
    engine, jobs = CrashingEngine("w1"), [job_of(recipe, number) for number in range(3)]
    asyncio.run(run(engine, recipe, *jobs))
    assert engine.engines == 1 + POISON_CRASHES
    assert [job.ok for job in jobs] == [True, False, True]
    kinds = {name: made.row.error_kind for name, made in jobs[1].rows.items()}
    assert kinds == {"a": "poison", "b": "poison", "c": "poison", "text": "upstream_failed"}


def test_answer_without_video_is_no_evidence_that_a_video_is_poison() -> None:
    recipe = recipe_of(Stage("a", "A"), Stage("text", "T {a}", video=False))
    answered = job_of(recipe)
    asyncio.run(run(FakeEngine(), recipe, answered))
    job = job_of(recipe)
    job.rows["a"] = answered.rows["a"]
    with pytest.raises(EngineError, match="the engine crashes on every window: none was answered in this run"):
        asyncio.run(run(CrashingEngine("w1"), recipe, job, job_of(recipe, 1)))


# --- any graph


@st.composite
def graphs(draw: st.DrawFn) -> StageGraph:
    stages: list[Stage] = []
    for number in range(draw(st.integers(1, 7))):
        names = [stage.name for stage in stages]
        needs = draw(st.lists(st.sampled_from(names), max_size=3)) if names else []
        prompt = " ".join([f"Question {number}", *(f"{{{name}}}" for name in needs)])
        output = draw(st.sampled_from(OUTPUTS))
        stages.append(Stage(f"s{number}", prompt, output, video=not needs or draw(st.booleans())))
    return StageGraph("test", tuple(draw(st.permutations(stages))))


class RandomEngine(FakeEngine):
    """An engine with random delays on which some stages fail. It checks each request against the running ones."""

    def __init__(self, recipe: Recipe, delays: Mapping[str, int], failing: set[str]) -> None:
        super().__init__(context=10**6)
        self._recipe, self._delays, self._failing = recipe, delays, failing
        self.running: set[str] = set()
        self.answered: set[str] = set()
        self.most = 0

    async def complete(self, request: Request) -> Completion:
        stage = self._recipe.stages[request.stage - 1]
        assert set(stage.needs) <= self.answered
        assert (request.frames is not None) == stage.video
        assert stage.name not in self.running
        self.running.add(stage.name)
        tokens = {name: self._recipe.params(self._recipe.graph.stage(name)).max_output_tokens for name in self.running}
        self.most = max(self.most, sum(tokens.values()))
        for turn in range(self._delays[stage.name]):
            await asyncio.sleep(0)
            if turn == 1:
                request.on_prefilled()
        self.running.remove(stage.name)
        if stage.name in self._failing:
            raise RequestFailed("refused", "refused by the fake engine")
        answer = await super().complete(request)
        self.answered.add(stage.name)
        return answer


@settings(max_examples=60)
@given(graphs(), st.data())
def test_any_graph_ends_with_a_row_for_each_stage_and_only_failed_needs_fail_a_stage(
    graph: StageGraph, data: st.DataObject
) -> None:
    recipe = Recipe(graph=graph, generation=SamplingParams(max_output_tokens=100), regenerations=0)
    names = [stage.name for stage in graph.stages]
    failing = data.draw(st.sets(st.sampled_from(names), max_size=2))
    delays = {name: data.draw(st.integers(0, 6)) for name in names}
    engine, job = RandomEngine(recipe, delays, failing), job_of(recipe)
    asyncio.run(run(engine, recipe, job))
    expected: dict[str, str | None] = {}
    for stage in graph.stages:
        needs_failed = any(expected[name] for name in stage.needs)
        expected[stage.name] = "upstream_failed" if needs_failed else "refused" if stage.name in failing else None
    assert {name: made.row.error_kind for name, made in job.rows.items()} == expected
    assert {made.row.status is Status.OK for made in job.rows.values()} == {kind is None for kind in expected.values()}
    assert engine.most <= job.load.tokens
