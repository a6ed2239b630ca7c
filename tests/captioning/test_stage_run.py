"""Tests of stages of one window that run at the same time, with a fake engine."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from caption_assets.captioning.engine import EngineCrashed, EngineError
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.request import Completion, PoisonWindow, Request, RequestFailed
from caption_assets.captioning.stages import Stage, StageGraph
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.captioning.window_job import WindowJob
from caption_assets.video.window import Windowing
from tests.captioning.fake_engine import FakeEngine, start_fake_engine
from tests.captioning.window_jobs import video_jobs
from tests.conftest import caption_all
from tests.videos import moving_video

pytestmark = pytest.mark.fast

ONE, TWO = Stage("one", "What is it?"), Stage("two", "Where is it?")
BOTH = Stage("both", "Join {one} and {two}.")
SHORT = Stage("short", "Shorten {both}.", video=False)
AGAIN = Stage("again", "Is {short} right?")
STAGES = (ONE, TWO, BOTH, SHORT, AGAIN)
RECIPE = Recipe(graph=StageGraph("test", STAGES), regenerations=0)


@pytest.fixture(scope="module")
def windows() -> list[WindowJob]:
    """Four windows of one clip."""
    return video_jobs(moving_video(96), Windowing(24, 12))


class StageEngine(FakeEngine):
    """An engine that records its requests by stage, and that a function may fail.

    Args:
        before: awaited before each answer; its exceptions are the engine's.
    """

    def __init__(self, before: Callable[[Request], Any] = lambda _: None) -> None:
        super().__init__()
        self._before = before
        self.requests: list[Request] = []

    def counts(self) -> dict[str, int]:
        """Number of requests by stage."""
        return dict(Counter(STAGES[request.stage - 1].name for request in self.requests))

    async def complete(self, request: Request) -> Completion:
        self.requests.append(request)
        if (waiting := self._before(request)) is not None:
            await waiting
        return await super().complete(request)


def run(engine: FakeEngine, jobs: list[WindowJob], **settings: Any) -> list[WindowJob]:
    """The finished jobs. Fails if a task or future is left with an exception."""
    problems: list[dict[str, Any]] = []

    async def caption() -> list[WindowJob]:
        asyncio.get_running_loop().set_exception_handler(lambda _, problem: problems.append(problem))
        async with EngineSupervisor(lambda: start_fake_engine(engine), **settings) as supervisor:
            try:
                return await caption_all(supervisor, RECIPE, jobs, stages=STAGES)
            finally:
                gc.collect()

    try:
        return asyncio.run(caption())
    finally:
        gc.collect()
        assert problems == []


def kinds(job: WindowJob) -> dict[str, str | None]:
    """The error kinds of a job's rows, by stage."""
    return {stage.name: job.row(stage).error_kind for stage in STAGES}


def test_poison_video_crashes_the_engine_in_one_stage_only(windows: list[WindowJob]) -> None:
    def poison(request: Request) -> None:
        raise PoisonWindow("vLLM 1")

    engine = StageEngine(poison)
    [done] = run(engine, windows[:1], settings="vLLM 1")
    assert engine.counts() == {"one": 1}
    assert list(kinds(done).values()) == ["poison", "poison", *["upstream_failed"] * 3]
    assert [done.row(stage).engine_settings for stage in (ONE, TWO)] == ["vLLM 1"] * 2


def test_stage_that_crashes_the_engine_on_an_answered_video_fails_alone(windows: list[WindowJob]) -> None:
    def poison(request: Request) -> None:
        if request.stage == 2:
            raise PoisonWindow("vLLM 1")

    [done] = run(StageEngine(poison), windows[:1])
    assert list(kinds(done).values()) == [None, "poison", *["upstream_failed"] * 3]


def test_video_that_a_needed_stage_reduced_stays_reduced(windows: list[WindowJob]) -> None:
    whole = 0

    def refuse(request: Request) -> None:
        nonlocal whole
        if request.frames is None:
            return
        whole = max(whole, len(request.frames.pixels))
        if request.stage != 2 and len(request.frames.pixels) == whole:
            raise RequestFailed("refused", "too many frames")

    engine = StageEngine(refuse)
    [done] = run(engine, windows[:1])
    assert done.ok
    assert engine.counts() == {"one": 3, "two": 1, "both": 1, "short": 1, "again": 1}
    frames = {stage.name: len(done.row(stage).frame_indices or ()) for stage in STAGES if stage.video}
    assert frames == {"one": whole // 2, "two": whole, "both": whole // 2, "again": whole // 2}


def test_clip_that_cannot_be_read_is_read_once_and_fails_each_stage(windows: list[WindowJob]) -> None:
    reads = 0

    def read() -> list[bytes]:
        nonlocal reads
        reads += 1
        raise OSError("the disk is gone")

    engine = StageEngine()
    [done] = run(engine, [replace(windows[0], read=read)])
    assert (reads, engine.requests) == (1, [])
    assert list(kinds(done).values()) == ["unreadable", "unreadable", *["upstream_failed"] * 3]
    assert [done.row(stage).attempts for stage in (ONE, TWO)] == [1, 1]


def test_crash_with_several_stages_in_flight_costs_no_answer(windows: list[WindowJob]) -> None:
    crashed = asyncio.Event()
    in_flight = 0

    async def crash_together(request: Request) -> None:
        nonlocal in_flight
        if crashed.is_set() or request.stage > 2:
            return
        request.on_prefilled()
        in_flight += 1
        if in_flight == 2 * len(windows):
            crashed.set()
        await crashed.wait()
        raise EngineCrashed("scripted")

    engine = StageEngine(crash_together)
    done = run(engine, windows)
    assert all(job.ok for job in done)
    assert engine.counts() == {"one": 8, "two": 8, "both": 4, "short": 4, "again": 4}
    assert {row.row.attempts for job in done for row in job.rows.values()} == {1}


def test_engine_that_cannot_be_restarted_ends_all_stages(windows: list[WindowJob]) -> None:
    async def crash(request: Request) -> None:
        request.on_prefilled()
        if request.stage == 2:
            raise EngineCrashed("scripted")
        await asyncio.sleep(0)

    with pytest.raises(EngineError, match="CAPTION_MAX_ENGINE_RESTARTS"):
        run(StageEngine(crash), windows, max_restarts=0)


@pytest.mark.parametrize("steps", [*range(1, 40, 3), 100, 200])
@pytest.mark.parametrize("fails", [False, True], ids=["clip", "unreadable clip"])
def test_cancellation_at_any_step_leaves_no_task(windows: list[WindowJob], steps: int, fails: bool) -> None:
    problems: list[dict[str, Any]] = []

    def read() -> list[bytes]:
        raise OSError("the disk is gone")

    async def cancel() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, problem: problems.append(problem))
        jobs = [replace(job, read=read) for job in windows] if fails else windows
        async with EngineSupervisor(lambda: start_fake_engine(FakeEngine(seconds=0.001))) as supervisor:
            running = asyncio.create_task(caption_all(supervisor, RECIPE, jobs, stages=STAGES))
            for _ in range(steps):
                await asyncio.sleep(0 if steps < 100 else 0.0005)
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            assert asyncio.all_tasks() == {asyncio.current_task()}
        gc.collect()

    asyncio.run(cancel())
    gc.collect()
    assert problems == []
