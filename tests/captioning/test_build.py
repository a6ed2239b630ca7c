from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Callable

import psutil
import pytest

from caption_assets.captioning import build as build_module
from caption_assets.captioning.build import Build
from tests.processes import is_gone

pytestmark = pytest.mark.fast

FORK = multiprocessing.get_context("fork")


def start_process() -> psutil.Process:
    process = FORK.Process(target=time.sleep, args=(600,), daemon=True)
    process.start()
    return psutil.Process(process.pid)


def test_end_of_a_build_ends_its_processes_and_no_others() -> None:
    other = start_process()

    async def run() -> psutil.Process:
        build = Build(lambda check: start_process())
        process = await build.result()
        assert not is_gone(process)
        build.end()
        return process

    assert is_gone(asyncio.run(run()))
    assert not is_gone(other)
    other.kill()


def test_event_loop_runs_during_a_build() -> None:
    async def run() -> int:
        build = Build(lambda check: time.sleep(0.3))
        result = asyncio.create_task(build.result())
        turns = 0
        while not result.done():
            await asyncio.sleep(0.01)
            turns += 1
        build.end()
        return turns

    assert asyncio.run(run()) > 5


def cancel(make: Callable[[Callable[[], None]], object], begun: Callable[[], bool]) -> float:
    """Cancel a build when it has begun, and return the seconds until it has ended."""

    async def run() -> float:
        build = Build(make)
        result = asyncio.create_task(build.result())
        while not begun():
            await asyncio.sleep(0.01)
        since = time.monotonic()
        result.cancel()
        with pytest.raises(asyncio.CancelledError):
            await result
        build.end()
        return time.monotonic() - since

    return asyncio.run(run())


def test_canceled_build_kills_the_process_that_it_waits_for() -> None:
    started: list[psutil.Process] = []

    def wait_for_a_process(check: Callable[[], None]) -> None:
        started.append(start_process())
        started[0].wait()
        raise RuntimeError("engine core initialization failed")

    assert cancel(wait_for_a_process, lambda: bool(started)) < build_module.CANCEL_SECONDS
    assert is_gone(started[0])


def test_canceled_build_starts_no_process() -> None:
    steps: list[str] = []

    def import_first(check: Callable[[], None]) -> None:
        steps.append("import")
        time.sleep(0.3)
        check()
        steps.append("processes")

    cancel(import_first, lambda: bool(steps))
    assert steps == ["import"]


def test_process_started_during_cancellation_is_ended() -> None:
    begun: list[bool] = []
    started: list[psutil.Process] = []

    def start_late(check: Callable[[], None]) -> None:
        begun.append(True)
        time.sleep(0.2)
        started.append(start_process())

    cancel(start_late, lambda: bool(begun))
    assert is_gone(started[0])


def test_canceled_build_does_not_wait_for_a_slow_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "CANCEL_SECONDS", 0.2)
    begun: list[bool] = []

    def import_for_long(check: Callable[[], None]) -> None:
        begun.append(True)
        time.sleep(3)
        check()

    assert cancel(import_for_long, lambda: bool(begun)) < 2
