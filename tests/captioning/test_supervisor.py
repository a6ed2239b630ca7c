"""The search for the window that crashes the engine, on a scripted engine; real crashes are in test_faults."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from caption_assets.captioning.engine import EngineCrashed, EngineError
from caption_assets.captioning.request import Completion, PoisonWindow, Request, RequestFailed
from caption_assets.captioning.sampling import SamplingParams
from caption_assets.captioning.supervisor import ANSWERS_PER_LIMIT, EngineSupervisor
from caption_assets.video.decode import Frames

pytestmark = pytest.mark.fast

NO_FRAMES = Frames(np.zeros((2, 28, 28, 3), np.uint8), (0, 1), 2.0)


class ScriptedEngine:
    """An engine that crashes on the windows in ``poison``, which fails all requests in progress, and refuses others."""

    resent = 2

    def __init__(self, poison: set[str], refused: set[str]) -> None:
        self._poison = poison
        self._refused = refused
        self._crash: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def complete(self, request: Request) -> Completion:
        if request.video_id in self._poison:
            await asyncio.sleep(0)
            if not self._crash.done():
                self._crash.set_result(None)
        if request.video_id in self._refused:
            raise RequestFailed("refused", "scripted refusal")
        answered = asyncio.create_task(asyncio.sleep(0.001 * (1 + int(request.video_id) % 3)))
        await asyncio.wait({answered, self._crash}, return_when=asyncio.FIRST_COMPLETED)
        if self._crash.done():
            raise EngineCrashed("scripted")
        return Completion(request.video_id, "stop", 1, 0, 1)


class Engines:
    """Builds scripted engines and counts them."""

    def __init__(self, poison: set[str], *, broken_from: int = 10**9) -> None:
        self.poison = poison
        self.refused: set[str] = set()
        self.built = self.running = 0
        self.broken_from = broken_from

    @asynccontextmanager
    async def start(self) -> AsyncIterator[Any]:
        self.built += 1
        if self.built >= self.broken_from:
            raise EngineError("scripted start failure")
        self.running += 1
        assert self.running == 1
        try:
            yield ScriptedEngine(self.poison, self.refused)
        finally:
            self.running -= 1


def build_request(number: int) -> Request:
    return Request(str(number), NO_FRAMES, "", SamplingParams(), stage=1)


async def request_all(supervisor: EngineSupervisor, windows: int) -> list[Any]:
    requests = [supervisor.complete(build_request(number)) for number in range(windows)]
    return await asyncio.gather(*requests, return_exceptions=True)


@settings(max_examples=40)
@given(windows=st.integers(1, 40), poison=st.sets(st.integers(0, 39), max_size=3))
def test_supervisor_finds_each_poison_window_within_three_crashes_and_answers_all_others(
    windows: int, poison: set[int]
) -> None:
    poison = {number for number in poison if number < windows}
    assume(len(poison) < windows)
    engines = Engines({str(number) for number in poison})

    async def run() -> tuple[list[Any], int]:
        async with EngineSupervisor(engines.start, max_restarts=99) as supervisor:
            return await request_all(supervisor, windows), supervisor.crashes

    outcomes, crashes = asyncio.run(run())
    for number, outcome in enumerate(outcomes):
        if number in poison:
            assert isinstance(outcome, PoisonWindow)
        else:
            assert outcome.text == str(number)
    assert crashes <= 3 * len(poison)
    assert engines.built == crashes + 1
    assert engines.running == 0


def test_crashes_beyond_the_limit_fail_pending_and_later_requests() -> None:
    engines = Engines({"3"})

    async def run() -> tuple[list[Any], list[Any]]:
        async with EngineSupervisor(engines.start, max_restarts=1) as supervisor:
            return await request_all(supervisor, 9), await request_all(supervisor, 1)

    outcomes, later = asyncio.run(run())
    assert any(isinstance(outcome, EngineError) for outcome in outcomes)
    [error] = later
    assert isinstance(error, EngineError)
    assert "CAPTION_MAX_ENGINE_RESTARTS = 1" in str(error)
    assert engines.running == 0


def test_failed_restart_of_the_engine_fails_all_requests() -> None:
    engines = Engines({"0"}, broken_from=2)

    async def run() -> list[Any]:
        async with EngineSupervisor(engines.start) as supervisor:
            return await asyncio.wait_for(request_all(supervisor, 3), 5)

    outcomes = asyncio.run(run())
    assert {str(outcome) for outcome in outcomes} == {"scripted start failure"}


@given(windows=st.integers(1, 3))
def test_no_window_is_poison_if_the_engine_crashes_on_every_request(windows: int) -> None:
    engines = Engines({"0", "1", "2"})

    async def run() -> list[Any]:
        async with EngineSupervisor(engines.start) as supervisor:
            return await request_all(supervisor, windows)

    for outcome in asyncio.run(run()):
        assert isinstance(outcome, EngineError)
        assert "none was answered in this run" in str(outcome)


def test_no_window_is_poison_if_the_engine_begins_to_crash_on_every_request() -> None:
    engines = Engines(set())

    async def run() -> list[Any]:
        async with EngineSupervisor(engines.start) as supervisor:
            before = await request_all(supervisor, 5)
            engines.poison.update(map(str, range(10)))
            return before + await request_all(supervisor, 2)

    *before, one, two = asyncio.run(run())
    assert all(isinstance(outcome, Completion) for outcome in before)
    assert {type(one), type(two)} == {EngineError}
    assert "answered before" in str(one)


def test_failed_callback_does_not_end_the_run() -> None:
    def failing(reason: str) -> None:
        raise OSError(reason)

    async def run() -> list[Any]:
        async with EngineSupervisor(Engines({"0"}).start, on_crash=failing) as supervisor:
            return await request_all(supervisor, 2)

    poison, other = asyncio.run(run())
    assert isinstance(poison, PoisonWindow)
    assert isinstance(other, Completion)


def test_each_crash_is_reported() -> None:
    reasons: list[str] = []

    async def run() -> None:
        async with EngineSupervisor(Engines({"0"}).start, on_crash=reasons.append) as supervisor:
            await request_all(supervisor, 2)

    asyncio.run(run())
    assert reasons == ["scripted"] * 3  # once with others, twice alone: the first crash may have another cause


@pytest.mark.parametrize(("answers", "expected"), [(ANSWERS_PER_LIMIT, PoisonWindow), (10, EngineError)])
def test_crash_limit_grows_with_the_number_of_answers(answers: int, expected: type[Exception]) -> None:
    engines = Engines({"-1", "-2"})

    async def run() -> list[Any]:
        async with EngineSupervisor(engines.start, max_restarts=3) as supervisor:
            answered = await request_all(supervisor, answers)
            return [*answered, await request_one(supervisor, -1), await request_one(supervisor, -2)]

    *answered, first, second = asyncio.run(run())
    assert all(isinstance(outcome, Completion) for outcome in answered)
    assert (type(first), type(second)) == (PoisonWindow, expected)


def test_crash_limit_grows_with_answers_on_retry() -> None:
    engines = Engines({"0", "-1"})

    async def run() -> tuple[list[Any], Any]:
        async with EngineSupervisor(engines.start, max_restarts=3) as supervisor:
            return await request_all(supervisor, ANSWERS_PER_LIMIT + 1), await request_one(supervisor, -1)

    [first, *retried], second = asyncio.run(run())
    assert all(isinstance(outcome, Completion) for outcome in retried)
    assert (type(first), type(second)) == (PoisonWindow, PoisonWindow)


async def request_one(supervisor: EngineSupervisor, number: int) -> Any:
    [outcome] = await asyncio.gather(supervisor.complete(build_request(number)), return_exceptions=True)
    return outcome


def test_canceled_request_does_not_fail_those_that_crashed_with_it() -> None:
    async def run() -> list[Any]:
        async with EngineSupervisor(Engines({"0"}).start) as supervisor:
            tasks = [asyncio.create_task(supervisor.complete(build_request(number))) for number in range(4)]
            while not supervisor.crashes:
                await asyncio.sleep(0)
            tasks[0].cancel()
            tasks[1].cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

    outcomes = asyncio.run(run())
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 2 + [Completion] * 2


def test_request_that_fails_on_retry_fails_alone() -> None:
    engines = Engines({"0"})

    async def run() -> list[Any]:
        async with EngineSupervisor(engines.start, on_crash=lambda _: engines.refused.add("1")) as supervisor:
            return await request_all(supervisor, 3)

    assert [type(outcome) for outcome in asyncio.run(run())] == [PoisonWindow, RequestFailed, Completion]


def test_control_that_fails_without_a_crash_confirms_the_poison() -> None:
    engines = Engines({"0"})

    async def run() -> Any:
        async with EngineSupervisor(engines.start) as supervisor:
            await request_one(supervisor, 1)
            engines.refused.add("1")
            return await request_one(supervisor, 0)

    assert isinstance(asyncio.run(run()), PoisonWindow)


def test_videos_sent_again_are_counted_over_all_engines() -> None:
    async def run() -> list[int]:
        async with EngineSupervisor(Engines({"0"}).start) as supervisor:
            before = supervisor.resent
            await request_all(supervisor, 2)
            after = supervisor.resent
        return [before, after, supervisor.resent]

    assert asyncio.run(run()) == [2, 4 * 2, 4 * 2]  # three crashes


def test_exit_during_a_restart_cancels_it() -> None:
    engines, restarting = Engines({"0"}), asyncio.Event()

    @asynccontextmanager
    async def start() -> AsyncIterator[Any]:
        async with engines.start() as engine:
            if engines.built > 1:
                restarting.set()
                await asyncio.sleep(3600)
            yield engine

    async def run() -> None:
        async with EngineSupervisor(start) as supervisor:
            task = asyncio.create_task(supervisor.complete(build_request(0)))
            await restarting.wait()
        task.cancel()

    asyncio.run(asyncio.wait_for(run(), 20))
    assert (engines.built, engines.running) == (2, 0)
