"""Tests of signals to a step's process, without an engine; test_stopping has those with an engine and with Dagster."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dagster as dg
import psutil
import pytest

from caption_assets.dagster_lib import termination
from caption_assets.dagster_lib.termination import Stop, stoppable
from tests.processes import is_gone, wait_until

pytestmark = pytest.mark.fast

FORK = multiprocessing.get_context("fork")  # with Dagster imported already
CONTEXT = dg.build_asset_context()
INTERRUPTED = 7
"""Exit code of a process whose step was interrupted."""
BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)


class Step:
    """A process that runs ``work`` as a Dagster step, and the file of notes that it writes."""

    def __init__(self, work: Callable[[Stop, Path], None], folder: Path) -> None:
        self.notes = folder / "notes"
        self.process = FORK.Process(target=_run, args=(work, self.notes))
        self.process.start()

    def signal(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait_for(self, word: str) -> None:
        wait_until(lambda: word in self.read(), 20, f"the step notes {word!r}", interval=0.01)

    def read(self) -> str:
        return self.notes.read_text() if self.notes.exists() else ""

    @property
    def exit_code(self) -> int | None:
        self.process.join(20)
        return self.process.exitcode


def note(notes: Path, word: str) -> None:
    with notes.open("a") as file:
        file.write(f"{word}\n")


def _run(work: Callable[[Stop, Path], None], notes: Path) -> None:
    try:
        with stoppable(CONTEXT) as stop:
            work(stop, notes)
    except dg.DagsterExecutionInterruptedError as interruption:
        note(notes, f"interruption {interruption}")
        if interruption.__cause__:
            note(notes, f"cause {interruption.__cause__!r}")
        raise SystemExit(INTERRUPTED) from None


@pytest.fixture
def start(tmp_path: Path) -> Callable[[Callable[[Stop, Path], None]], Step]:
    def start(work: Callable[[Stop, Path], None]) -> Step:
        step = Step(work, tmp_path)
        step.wait_for("started")
        return step

    return start


Start = Callable[[Callable[[Stop, Path], None]], Step]


async def save_when_interrupted(notes: Path, seconds: float = 0.1) -> None:
    try:
        note(notes, "started")
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(seconds)
        note(notes, "saved")


def on_loop(stop: Stop, notes: Path) -> None:
    stop.run(save_when_interrupted(notes))


def blocking(stop: Stop, notes: Path) -> None:
    try:
        note(notes, "started")
        time.sleep(60)
    finally:
        note(notes, "saved")


def blocking_the_loop(stop: Stop, notes: Path) -> None:
    async def work() -> None:
        note(notes, "started")
        time.sleep(0.4)
        await save_when_interrupted(notes)

    stop.run(work())


def failing(stop: Stop, notes: Path) -> None:
    async def work() -> None:
        try:
            await save_when_interrupted(notes)
        except asyncio.CancelledError:
            raise ValueError("the engine exited") from None

    stop.run(work())


def finished_in_time(stop: Stop, notes: Path) -> None:
    async def work() -> str:
        try:
            note(notes, "started")
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            note(notes, "saved")
        return "finished"

    note(notes, stop.run(work()))


class LosesInterruptions:
    """An object whose finalizer is interrupted: Python prints the exception and drops it."""

    def __init__(self, notes: Path) -> None:
        self._notes = notes

    def __del__(self) -> None:
        note(self._notes, "saved")
        note(self._notes, "started")
        time.sleep(60)


def waiting_in_a_finalizer(stop: Stop, notes: Path) -> None:
    LosesInterruptions(notes)


@BOTH
@pytest.mark.parametrize("work", [on_loop, blocking, blocking_the_loop, finished_in_time, waiting_in_a_finalizer])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_first_signal_stops_the_step_after_it_saves(
    start: Start, work: Callable[[Stop, Path], None], number: signal.Signals
) -> None:
    step = start(work)
    step.signal(number)
    assert step.exit_code == INTERRUPTED
    assert "saved" in step.read()
    assert f"stopped by {number.name}" in step.read()
    assert "finished\n" not in step.read()


def test_error_of_a_stopping_step_is_the_interruptions_cause(start: Start) -> None:
    step = start(failing)
    step.signal(signal.SIGINT)
    assert step.exit_code == INTERRUPTED
    assert "cause ValueError('the engine exited')" in step.read()


def test_simultaneous_signals_count_as_one(start: Start) -> None:
    step = start(on_loop)
    step.signal(signal.SIGINT)
    step.signal(signal.SIGTERM)
    step.signal(signal.SIGINT)
    assert step.exit_code == INTERRUPTED
    assert "saved" in step.read()


def never_ending(stop: Stop, notes: Path) -> None:
    child = FORK.Process(target=time.sleep, args=(600,))
    child.start()
    note(notes, f"child {child.pid} .")

    async def work() -> None:
        note(notes, "started")
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                note(notes, "canceled")
                time.sleep(600)

    stop.run(work())


def child_of(step: Step) -> psutil.Process:
    return psutil.Process(int(step.read().split("child ")[1].split()[0]))


@BOTH
def test_second_signal_kills_the_process_and_its_children(start: Start, number: signal.Signals) -> None:
    step = start(never_ending)
    child = child_of(step)
    step.signal(number)
    step.wait_for("canceled")
    time.sleep(termination.DEBOUNCE_SECONDS + 0.1)
    signaled = time.monotonic()
    step.signal(signal.SIGTERM)
    assert step.exit_code == 1
    assert time.monotonic() - signaled < termination.REPORT_SECONDS + 2
    assert "interruption" not in step.read()
    wait_until(lambda: is_gone(child), 10, "the child exits")


def test_stop_that_takes_too_long_kills_the_process(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(termination, "STOP_SECONDS", 0.3)
    step = start(never_ending)
    child = child_of(step)
    step.signal(signal.SIGTERM)
    assert step.exit_code == 1
    wait_until(lambda: is_gone(child), 10, "the child exits")


def leaving_a_thread(stop: Stop, notes: Path) -> None:
    threading.Thread(target=time.sleep, args=(600,)).start()
    blocking(stop, notes)


def leaving_a_pool(stop: Stop, notes: Path) -> None:
    ThreadPoolExecutor().submit(time.sleep, 600)
    blocking(stop, notes)


@pytest.mark.parametrize("work", [leaving_a_thread, leaving_a_pool])
def test_hanging_thread_does_not_delay_the_exit(
    start: Start, monkeypatch: pytest.MonkeyPatch, work: Callable[[Stop, Path], None]
) -> None:
    monkeypatch.setattr(termination, "EXIT_SECONDS", 0.3)
    step = start(work)
    step.signal(signal.SIGINT)
    assert step.exit_code == 1
    assert "interruption" in step.read()


def test_previous_signal_handlers_are_restored_after_the_step() -> None:
    before = [signal.getsignal(number) for number in termination.SIGNALS]
    with stoppable(CONTEXT):
        assert [signal.getsignal(number) for number in termination.SIGNALS] != before
    assert [signal.getsignal(number) for number in termination.SIGNALS] == before


def launch(notes: Path) -> None:
    FORK.Process(target=_run, args=(on_loop, notes)).start()
    time.sleep(600)


def test_step_stops_when_its_launcher_is_killed(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    launcher = FORK.Process(target=launch, args=(notes,))
    launcher.start()
    wait_until(notes.exists, 20, "the step starts")
    launcher.kill()
    wait_until(lambda: "interruption stopped by SIGTERM" in notes.read_text(), 20, "the step stops")
    assert "saved" in notes.read_text()
