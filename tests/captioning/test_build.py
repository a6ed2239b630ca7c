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


def test_what_is_built_is_handed_over_and_its_processes_end_with_it_and_no_others() -> None:
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


def test_the_event_loop_goes_on_during_a_build() -> None:
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
    """Seconds that a build takes to end that is canceled when it has begun."""

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


def test_a_build_that_waits_for_its_processes_ends_with_them_when_it_is_cancelled() -> None:
    started: list[psutil.Process] = []

    def wait_for_a_process(check: Callable[[], None]) -> None:
        started.append(start_process())
        started[0].wait()
        raise RuntimeError("engine core initialization failed")

    assert cancel(wait_for_a_process, lambda: bool(started)) < build_module.CANCEL_SECONDS
    assert is_gone(started[0])


def test_a_cancelled_build_starts_no_process_any_more() -> None:
    steps: list[str] = []

    def import_first(check: Callable[[], None]) -> None:
        steps.append("import")
        time.sleep(0.3)
        check()
        steps.append("processes")

    cancel(import_first, lambda: bool(steps))
    assert steps == ["import"]


def test_processes_that_come_up_just_when_the_build_is_cancelled_are_ended() -> None:
    begun: list[bool] = []
    started: list[psutil.Process] = []

    def start_late(check: Callable[[], None]) -> None:
        begun.append(True)
        time.sleep(0.2)
        started.append(start_process())

    cancel(start_late, lambda: bool(begun))
    assert is_gone(started[0])


def test_an_import_that_takes_too_long_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "CANCEL_SECONDS", 0.2)
    begun: list[bool] = []

    def import_for_long(check: Callable[[], None]) -> None:
        begun.append(True)
        time.sleep(3)
        check()

    assert cancel(import_for_long, lambda: bool(begun)) < 2
