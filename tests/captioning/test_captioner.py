"""Tests of the captioner with a fake engine: the order of requests, and failed ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from caption_assets.captioning.budget import FrameGrid
from caption_assets.captioning.planner import SPARE_TOKENS
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.request import Completion, ReasoningCutOff, Request, RequestFailed
from caption_assets.captioning.sampling import SamplingParams
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.captioning.window_job import WindowJob
from caption_assets.store.tables import Status
from caption_assets.video.window import Windowing
from tests.captioning.fake_engine import FakeEngine, start_fake_engine
from tests.captioning.window_jobs import video_jobs
from tests.conftest import caption_all
from tests.stages import STAGE1, STAGE2, two_stages
from tests.videos import moving_video

pytestmark = pytest.mark.fast

ALIKE = "nothing at all happens in this quiet street"
RECIPE = two_stages()


class ScriptedEngine(FakeEngine):
    """An engine with the answers of a function. It records its requests."""

    def __init__(self, answer: Callable[[Request], str | None]) -> None:
        super().__init__()
        self._answer = answer
        self.requests: list[Request] = []
        self.finish_reason = "stop"

    async def complete(self, request: Request) -> Completion:
        self.requests.append(request)
        if (text := self._answer(request)) is None:
            raise RequestFailed("timeout", "scripted failure")
        return Completion(text, self.finish_reason, 100, 0, len(text.split()))


def run(engine: FakeEngine, jobs: list[WindowJob], recipe: Recipe = RECIPE) -> list[WindowJob]:
    async def caption() -> list[WindowJob]:
        async with EngineSupervisor(lambda: start_fake_engine(engine)) as supervisor:
            return await caption_all(supervisor, recipe, jobs)

    return asyncio.run(caption())


@pytest.fixture(scope="module")
def windows() -> list[WindowJob]:
    """Twelve windows of one clip."""
    return video_jobs(moving_video(288), Windowing(24, 12))


def is_first(request: Request) -> bool:
    """Whether the request has the recipe's sampling, and not that of a regeneration."""
    return request.generation == RECIPE.generation


class ConcurrentRegenerationEngine(FakeEngine):
    """An engine with one answer. It answers no regeneration before there are ``count`` of them."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._left = count
        self._complete = asyncio.Event()

    async def complete(self, request: Request) -> Completion:
        if request.stage == 1 and not is_first(request):
            self._left -= 1
            if not self._left:
                self._complete.set()
            await asyncio.wait_for(self._complete.wait(), 20)
        return Completion(ALIKE, "stop", 100, 0, 8)


def test_similar_windows_are_regenerated_concurrently(windows: list[WindowJob]) -> None:
    done = run(ConcurrentRegenerationEngine(11), windows)
    assert [row.row(STAGE1).flags for row in done] == [(), *[("near_duplicate",)] * 11]
    assert all(row.ok for row in done)


class ReasoningEngine(FakeEngine):
    """An engine that reasons for a number of tokens before it answers."""

    def __init__(self, tokens: int, context: int = 2048) -> None:
        super().__init__()
        self.context = context
        self._tokens = tokens
        self.output_limits: list[int] = []

    async def complete(self, request: Request) -> Completion:
        limit = request.generation.max_output_tokens
        self.output_limits.append(limit)
        if limit <= self._tokens:
            raise ReasoningCutOff(100, limit)
        return Completion("a dog crosses the road", "stop", 100, 0, limit)


def test_reasoning_that_is_cut_off_is_retried_with_a_higher_output_limit(windows: list[WindowJob]) -> None:
    engine = ReasoningEngine(tokens=300)
    [done] = run(engine, windows[:1], replace(RECIPE, generation=SamplingParams(max_output_tokens=100)))
    assert done.ok
    assert engine.output_limits == [100, 200, 400] * 2
    row = done.row(STAGE1)
    assert row.sampling is not None
    assert (row.attempts, row.sampling["max_output_tokens"]) == (3, 400)


def test_endless_reasoning_fails_with_its_kind(windows: list[WindowJob]) -> None:
    engine = ReasoningEngine(tokens=10**9)
    [done] = run(engine, windows[:1], replace(RECIPE, generation=SamplingParams(max_output_tokens=100)))
    assert (done.row(STAGE1).error_kind, done.row(STAGE1).caption) == ("reasoning_cut_off", None)
    assert "still reasoning after 800 tokens: raise CAPTION_MAX_OUTPUT_TOKENS" in (done.row(STAGE1).error or "")
    assert engine.output_limits == [100, 200, 400, 800]


class TimeoutEngine(FakeEngine):
    """An engine on which one window times out: the second time only after another window has reached stage 2."""

    def __init__(self, window_id: str) -> None:
        super().__init__()
        self._window_id = window_id
        self._tries = 0
        self._other_at_stage2 = asyncio.Event()

    async def complete(self, request: Request) -> Completion:
        if request.video_id.startswith(self._window_id):
            self._tries += 1
            if self._tries == 2:
                await asyncio.wait_for(self._other_at_stage2.wait(), 20)
            raise RequestFailed("timeout", "scripted timeout")
        if request.stage == 2:
            self._other_at_stage2.set()
        return Completion(f"{ALIKE} {request.video_id}", "stop", 100, 0, 8)


def test_window_that_times_out_delays_no_other_of_its_clip(windows: list[WindowJob]) -> None:
    done = run(TimeoutEngine(windows[0].window.window_id), windows)
    assert (done[0].row(STAGE1).error_kind, done[0].row(STAGE1).attempts) == ("timeout", 4)
    assert all(row.ok for row in done[1:])


def test_failed_regeneration_keeps_the_frames_for_stage_2(windows: list[WindowJob]) -> None:
    engine = ScriptedEngine(lambda request: ("short" if request.stage == 1 else ALIKE) if is_first(request) else None)
    [done] = run(engine, windows[:1])
    assert (done.row(STAGE1).caption, done.row(STAGE1).attempts, done.row(STAGE2).status) == ("short", 2, Status.OK)
    assert done.row(STAGE2).frame_indices == done.row(STAGE1).frame_indices
    assert engine.requests[-1].is_cached
    assert engine.requests[-1].video_id == engine.requests[0].video_id


def test_windows_are_distributed_over_replicas_and_keep_theirs(windows: list[WindowJob]) -> None:
    engine = ScriptedEngine(lambda request: f"{ALIKE} {request.video_id}")
    run(engine, [replace(job, shard=f"shard-{number}") for number, job in enumerate(windows)])
    replicas = [{request.replica for request in engine.requests if request.stage == stage} for stage in (1, 2)]
    assert replicas == [set(range(12))] * 2
    assert len({(request.video_id, request.replica) for request in engine.requests}) == 12


def test_regenerated_stage_1_leaves_room_for_stage_2(windows: list[WindowJob]) -> None:
    limit = 300
    recipe = replace(RECIPE, generation=SamplingParams(max_output_tokens=limit))
    engine = ScriptedEngine(lambda request: f"{ALIKE} {request.video_id}")
    engine.finish_reason = "length"
    engine.context = len(STAGE2.template) + 2 * limit + SPARE_TOKENS + 60
    run(engine, windows[:1], recipe)
    first, longer = (request for request in engine.requests if request.stage == 1)
    assert limit == first.generation.max_output_tokens < longer.generation.max_output_tokens < 2 * limit
    assert first.frames
    frames, height, width, _ = first.frames.pixels.shape
    video = asyncio.run(engine.video_tokens(FrameGrid(frames, height, width), first.frames.fps))
    beside = len(STAGE2.instruction({STAGE1.name: ""})) + SPARE_TOKENS
    assert video + beside + longer.generation.max_output_tokens + limit == engine.context
