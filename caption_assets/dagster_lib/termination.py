"""Stopping a step by SIGINT or SIGTERM: from the UI, the keyboard, ``dagster dev``, a supervisor or Kubernetes.

The first signal stops the step: what is finished is kept, the engine ends, and Dagster learns of an interruption. It
then cancels the run if the user asked for that, and fails it if not. The second signal ends the process at once.
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
"""Maximum time from the first signal to the end of the step's own work; then the process ends as with a second one."""
EXIT_SECONDS = 5.0
"""Maximum time that threads of libraries may delay the exit of a process that was stopped."""
REPORT_SECONDS = 3.0
"""Maximum time for telling Dagster of a run whose process ends at once. Together these stay below 30 s."""
SAME_SECONDS = 0.5
"""Two signals within this time count as one: Ctrl-C reaches the process of a step from the terminal and its run."""
LAUNCHER = re.compile(r"dg|dagster([._-].*)?")
"""Names of Dagster's programs and modules."""


class _Word(Enum):
    """What the handler and the step tell the watching thread."""

    STOP = "the first signal came"
    AGAIN = "another signal came"
    ENDED = "the step has ended"
    EXITING = "the process waits for its threads"


class Stop:
    """Handles the signals of one step, in the main thread.

    Args:
        report: tells Dagster why the process ends, where nobody else will.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._signal: str | None = None
        self._signalled_at = 0.0
        self._is_on_loop = False
        self._cancel: Callable[[], object] | None = None
        self._words: SimpleQueue[_Word] = SimpleQueue()  # can be put to by a handler, whatever it interrupts

    @property
    def is_under_way(self) -> bool:
        """Whether a signal came."""
        return self._signal is not None

    @property
    def interruption(self) -> dg.DagsterExecutionInterruptedError:
        """What Dagster is told."""
        return dg.DagsterExecutionInterruptedError(f"stopped by {self._signal}; what was finished is kept")

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` on an event loop of its own; the first signal cancels it.

        Raises:
            DagsterExecutionInterruptedError: if a signal came, also where the work was finished nevertheless.
        """

        async def cancellable() -> T:
            loop, task = asyncio.get_running_loop(), asyncio.current_task()
            assert task is not None  # a coroutine runs in one
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
        """Raise if a signal came.

        Args:
            error: what the step failed with meanwhile, if it did.

        Raises:
            DagsterExecutionInterruptedError: as above.
        """
        if self._signal:
            raise self.interruption from error

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The handler. Outside of ``run`` it raises, as Dagster's own does."""
        if self._signal is None:
            self._signal, self._signalled_at = signal.Signals(number).name, time.monotonic()
            self._words.put(_Word.STOP)
            if not self._is_on_loop:
                raise self.interruption
            if self._cancel:
                self._cancel()
        elif time.monotonic() - self._signalled_at > SAME_SECONDS:
            self._words.put(_Word.AGAIN)

    def watch(self) -> None:
        """Ends the process when a stop takes too long or is asked for again; what the watching thread does."""
        if self._words.get() is _Word.ENDED:
            return
        try:
            word = self._words.get(timeout=STOP_SECONDS)
        except Empty:
            self._end_process(f"the step did not stop within {STOP_SECONDS:g} s of {self._signal}")
        if word is _Word.AGAIN:
            self._end_process(f"ended at once by a signal after {self._signal}")
        self._words.get()
        time.sleep(EXIT_SECONDS)
        os._exit(1)

    def end(self) -> None:
        """The step's own work is over."""
        self._words.put(_Word.ENDED)
        if self._signal:  # as concurrent.futures does, whose threads would be waited for next
            threading._register_atexit(self._words.put, _Word.EXITING)  # type: ignore[attr-defined]

    def _end_process(self, reason: str) -> None:
        for child in active_children():  # they die with this process, but not all before they have come up
            child.kill()
        reporting = threading.Thread(target=self._report, args=(reason,), daemon=True)
        reporting.start()
        reporting.join(REPORT_SECONDS)
        print(f"{reason}; what is in checkpoints is kept", file=sys.stderr, flush=True)
        os._exit(1)


@contextmanager
def stoppable(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext) -> Iterator[Stop]:
    """Handle SIGINT and SIGTERM while the block runs, which must not yield to Dagster.

    In other threads than the main one signals do not arrive: nothing is handled there.

    Raises:
        DagsterExecutionInterruptedError: if one came.
    """
    stop = Stop(lambda reason: _report(context, reason))
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    threading.Thread(target=stop.watch, name="stop watch", daemon=True).start()
    read, write = os.pipe()
    threading.Thread(target=_follow_launchers, args=(stop, read), name="launcher watch", daemon=True).start()
    try:
        for number in SIGNALS:
            signal.signal(number, stop.handle)
        yield stop
        stop.check()  # what the handler raised may have been lost in a finaliser
    except Exception as error:
        stop.check(error)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(write)
        stop.end()


def _report(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext, reason: str) -> None:
    """Tell Dagster how the run ends whose process is ended here.

    A step in a process or pod of its own is its executor's to report.
    """
    run = context.instance.get_run_by_id(context.run.run_id)
    if run is None or run.is_finished:
        return
    if run.status is dg.DagsterRunStatus.CANCELING:
        context.instance.report_run_canceled(run, reason)
    elif context.job_def.executor_def.name == dg.in_process_executor.name:
        context.instance.report_run_failed(run, reason)


def _follow_launchers(stop: Stop, ended: int) -> None:
    """Stop this process when the process of Dagster's that launched it ends, or one above that.

    ``dagster dev`` that is stopped leaves its code server behind until the runs of that have ended.

    Args:
        stop: the step's.
        ended: a file that becomes readable when the step has ended.
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
        if not has_ended and not stop.is_under_way:  # a second signal would cut it off
            os.kill(os.getpid(), signal.SIGTERM)


def _launchers() -> Iterator[int]:
    """The process ids of those processes, nearest first; none for a run on the command line."""
    parent = parent_process()
    if parent is None or parent.pid is None or sys.platform != "linux":
        return
    pid = parent.pid
    yield pid
    while (pid := _parent_of(pid)) > 1 and _is_dagsters(pid):
        yield pid


def _parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _is_dagsters(pid: int) -> bool:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    return "--multiprocessing-fork" in words or any(LAUNCHER.fullmatch(PurePath(word).name) for word in words[:6])
