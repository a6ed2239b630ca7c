"""One worker process, which does the jobs that it is given one after the other."""

from __future__ import annotations

import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from caption_assets.workers.parent_death import set_parent_death_signal

NICENESS = 10
"""Of workers, so that the process that feeds the engine, or a CPU engine itself, does not wait for them (nice(2))."""
START_SECONDS = 300.0
"""Within which a worker has started, and has loaded the modules that a job is of."""
EXIT_SECONDS = 10.0
"""For a worker that has let go of its pipe to end by itself, so that its exit code tells why."""
_PROGRAM = """
import sys
descriptor, parent, seconds, memory, *sys.path = sys.argv[1:]
from caption_assets.workers.worker import work
work(int(descriptor), int(parent), float(seconds), int(memory))
"""
"""Runs in the process. Not multiprocessing's: that imports the caller's main module first, which runs a script without
a main guard once more in each worker, and fails for a script from stdin, which is no file."""


class WorkerCrashed(Exception):
    """A worker that ended with a job."""

    def __init__(self, exit_code: int | None) -> None:
        super().__init__(f"the worker died (exit code {exit_code})")
        self.exit_code = exit_code
        """Negative: the signal that it died of."""


class WorkerLost(WorkerCrashed):
    """A worker that ended before it began a job or was told to end: the job can be done by another."""


class Worker:
    """A process with a pipe of its own, so that it takes nothing of others along when it dies.

    The thread that makes it must outlive it: the kernel ends the process with that thread.

    Args:
        seconds: of wall time, and of CPU time, that a job may take.
        memory: bytes of its own that the process may have.
    """

    def __init__(self, seconds: float, memory: int) -> None:
        self._seconds = seconds
        self._pipe, theirs = Pipe()
        arguments = [theirs.fileno(), os.getpid(), seconds, memory, *sys.path]
        with theirs:
            # -P: only the caller's own path counts, not the folder in which it works.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    @property
    def is_alive(self) -> bool:
        """Whether it can be given a job."""
        return self._process.poll() is None

    def do(self, call: Callable[[], Any]) -> Any:
        """What a function returns in the worker.

        Raises:
            TimeoutError: if it takes too long; the worker is ended.
            WorkerGone: if the worker died before it began, or was told to end.
            WorkerDied: if the worker died later.
            Exception: whatever the function raises.
        """
        message = pickle.dumps(call)
        death: type[WorkerCrashed] = WorkerLost
        try:
            self._pipe.send_bytes(message)
            self._receive_within(START_SECONDS)
            death = WorkerCrashed
            reply = self._receive_within(self._seconds)
        except TimeoutError:  # an OSError too
            raise
        except (EOFError, OSError):  # the latter where a message breaks off
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(EXIT_SECONDS)
            self.kill()
            if self._process.returncode == -signal.SIGTERM:  # no clip's doing: sent to all processes of a run's group
                death = WorkerLost
            raise death(self._process.returncode) from None
        done, result = pickle.loads(reply)
        if not done:
            raise result
        return result

    def _receive_within(self, seconds: float) -> bytes:
        if not self._pipe.poll(seconds):
            self.kill()
            raise TimeoutError
        return self._pipe.recv_bytes()

    def kill(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End the process and let its pipe go."""
        self.kill()
        self._pipe.close()


def work(descriptor: int, parent: int, seconds: float, memory: int) -> None:
    """Do jobs until the pipe is closed; what the process runs.

    Args:
        descriptor: the worker's end of the pipe.
        parent: process id of the caller.
        seconds: as for ``Worker``.
        memory: as for ``Worker``.
    """
    pipe = Connection(descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # it may have been ignored where the run was started
    set_parent_death_signal(parent)
    os.nice(NICENESS)
    # Not the address space: libraries reserve far more of that than they use.
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            message = pipe.recv_bytes()
        except EOFError:
            return
        call = _unpickled(message)
        pipe.send_bytes(b"")  # from here on its time counts
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + seconds) + 1, hard))
        pipe.send_bytes(_result(call))


def _unpickled(message: bytes) -> Callable[[], Any]:
    """The job; where it cannot be unpickled, one that raises the error."""
    try:
        call: Callable[[], Any] = pickle.loads(message)
    except Exception as error:
        reason: Exception = error
        if isinstance(error, (AttributeError, ImportError)):
            reason = RuntimeError(f"a worker cannot import what the job needs ({error}): define it in a module")

        def call() -> Any:
            raise reason

    return call


def _result(call: Callable[[], Any]) -> bytes:
    """What comes of a job, pickled: whether it was done, and its result or error."""
    try:
        return pickle.dumps((True, call()))
    except Exception as error:
        try:
            reply = pickle.dumps((False, error))
            pickle.loads(reply)  # some can be pickled and not be made again
        except Exception:
            reply = pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))
        return reply
