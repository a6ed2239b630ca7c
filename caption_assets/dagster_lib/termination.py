"""Termination of a step by SIGINT or SIGTERM: from the UI, the keyboard, ``dagster dev``, a supervisor or Kubernetes.

The first signal stops the step: finished rows go into checkpoints, the engine ends, and an interruption is raised.
Dagster then cancels the run if the user asked for that, and fails it otherwise. The second signal ends the process at
once.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from enum import Enum
from multiprocessing import active_children, parent_process
from multiprocessing.connection import wait
from pathlib import Path, PurePath
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, TypeVar

import dagster as dg

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOP_SECONDS = 20.0
"""Maximum time from the first signal to the end of the step's work; then the process ends as with a second signal."""
EXIT_SECONDS = 5.0
"""Maximum time that libraries' threads may delay the exit of a stopped process."""
REPORT_SECONDS = 3.0
"""Maximum time for reporting to Dagster that a process ends at once. The three times add up to less than 30 s."""
DEBOUNCE_SECONDS = 0.5
"""Signals within this time count as one: Ctrl-C reaches a step's process from the terminal and from its run."""
LAUNCHER = re.compile(r"dg|dagster([._-].*)?")
"""Names of Dagster's programs and modules."""


class _Event(Enum):
    """Events from the signal handler and the step to the watching thread."""

    FIRST_SIGNAL = "the first signal arrived"
    SECOND_SIGNAL = "another signal arrived"
    STEP_ENDED = "the step has ended"
    EXITING = "the process waits for its threads"


class Stop:
    """The signal handler of one step, in the main thread.

    Args:
        report: reports to Dagster why the process ends.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._signal: str | None = None
        self._signalled_at = 0.0
        self._is_on_loop = False
        self._cancel: Callable[[], object] | None = None
        self._events: SimpleQueue[_Event] = SimpleQueue()  # a signal handler may put into it

    @property
    def is_requested(self) -> bool:
        """Whether a signal has arrived."""
        return self._signal is not None

    @property
    def interruption(self) -> dg.DagsterExecutionInterruptedError:
        """The exception for Dagster."""
        return dg.DagsterExecutionInterruptedError(f"stopped by {self._signal}; finished rows are kept")

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on its own event loop. The first signal cancels it.

        Raises:
            DagsterExecutionInterruptedError: if a signal arrived, even if the work finished.
        """

        async def cancellable() -> T:
            loop, task = asyncio.get_running_loop(), asyncio.current_task()
            assert task is not None  # a coroutine runs in a task
            self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
            try:
                if self._signal:
                    task.cancel()
                return await work
            finally:
                self._cancel = None

        self._is_on_loop = True
        try:
            result = asyncio.run(cancellable())
        except asyncio.CancelledError:
            self.check()
            raise
        finally:
            self._is_on_loop = False
        self.check()
        return result

    def check(self, error: Exception | None = None) -> None:
        """Raise if a signal has arrived.

        Args:
            error: error of the step, which becomes the cause.

        Raises:
            DagsterExecutionInterruptedError: if a signal has arrived.
        """
        if self._signal:
            raise self.interruption from error

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal. Outside of ``run`` this raises, as Dagster's own handler does."""
        if self._signal is None:
            self._signal, self._signalled_at = signal.Signals(number).name, time.monotonic()
            self._events.put(_Event.FIRST_SIGNAL)
            if not self._is_on_loop:
                raise self.interruption
            if self._cancel:
                self._cancel()
        elif time.monotonic() - self._signalled_at > DEBOUNCE_SECONDS:
            self._events.put(_Event.SECOND_SIGNAL)

    def watch(self) -> None:
        """End the process if a stop takes too long or a second signal arrives. Runs in the watching thread."""
        if self._events.get() is _Event.STEP_ENDED:
            return
        try:
            event = self._events.get(timeout=STOP_SECONDS)
        except Empty:
            self._end_process(f"the step did not stop within {STOP_SECONDS:g} s of {self._signal}")
        if event is _Event.SECOND_SIGNAL:
            self._end_process(f"ended by a second signal after {self._signal}")
        self._events.get()
        time.sleep(EXIT_SECONDS)
        os._exit(1)

    def end(self) -> None:
        """Signal the end of the step's work to the watching thread."""
        self._events.put(_Event.STEP_ENDED)
        if self._signal:  # as concurrent.futures does: its threads are joined next
            threading._register_atexit(self._events.put, _Event.EXITING)  # type: ignore[attr-defined]

    def _end_process(self, reason: str) -> None:
        for child in active_children():  # they end with this process, unless they are still starting
            child.kill()
        reporting = threading.Thread(target=self._report, args=(reason,), daemon=True)
        reporting.start()
        reporting.join(REPORT_SECONDS)
        print(f"{reason}; checkpoints are kept", file=sys.stderr, flush=True)
        os._exit(1)


@contextmanager
def stoppable(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext) -> Iterator[Stop]:
    """Handle SIGINT and SIGTERM while the block runs. The block must not yield to Dagster.

    Python handles signals only in the main thread. In another thread the block runs without a handler.

    Raises:
        DagsterExecutionInterruptedError: if a signal arrived.
    """
    stop = Stop(lambda reason: _report(context, reason))
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    threading.Thread(target=stop.watch, name="signal watch", daemon=True).start()
    read, write = os.pipe()
    threading.Thread(target=_follow_launchers, args=(stop, read), name="launcher watch", daemon=True).start()
    try:
        for number in SIGNALS:
            signal.signal(number, stop.handle)
        yield stop
        stop.check()  # Python discards an exception that the handler raises in a finalizer
    except Exception as error:
        stop.check(error)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(write)
        stop.end()


def _report(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext, reason: str) -> None:
    """Report the end of the run to Dagster, if this is the run's process.

    An executor reports steps that have their own process or pod.
    """
    run = context.instance.get_run_by_id(context.run.run_id)
    if run is None or run.is_finished:
        return
    if run.status is dg.DagsterRunStatus.CANCELING:
        context.instance.report_run_canceled(run, reason)
    elif context.job_def.executor_def.name == dg.in_process_executor.name:
        context.instance.report_run_failed(run, reason)


def _follow_launchers(stop: Stop, ended: int) -> None:
    """Stop this process when a Dagster process that launched it ends.

    After ``dagster dev`` is stopped, its code server runs until the server's runs have ended.

    Args:
        stop: the step's signal handler.
        ended: file descriptor that becomes readable when the step has ended.
    """
    with ExitStack() as files:
        files.callback(os.close, ended)
        launchers = []
        try:
            for pid in _launchers():
                launchers.append(os.pidfd_open(pid))
                files.callback(os.close, launchers[-1])
            has_ended = ended in wait([*launchers, ended])
        except (ProcessLookupError, FileNotFoundError):
            has_ended = False
        if not has_ended and not stop.is_requested:  # a second signal would end it at once
            os.kill(os.getpid(), signal.SIGTERM)


def _launchers() -> Iterator[int]:
    """Process ids of the Dagster processes above this one, nearest first; none for a command-line run."""
    parent = parent_process()
    if parent is None or parent.pid is None or sys.platform != "linux":
        return
    pid = parent.pid
    yield pid
    while (pid := _parent_of(pid)) > 1 and _is_dagster(pid):
        yield pid


def _parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _is_dagster(pid: int) -> bool:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    return "--multiprocessing-fork" in words or any(LAUNCHER.fullmatch(PurePath(word).name) for word in words[:6])
