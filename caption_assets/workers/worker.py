"""A worker process, which runs one job at a time."""

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
"""Niceness of workers (nice(2)): the process that feeds the engine, and a CPU engine itself, take precedence. On two
cores the engine takes 18 % less CPU time than with 0, and a run 3 % less time; 19 gains nothing more."""
START_SECONDS = 300.0
"""Timeout for a worker to start and to import the modules of a job, in seconds."""
EXIT_SECONDS = 10.0
"""Timeout for a worker to exit after it closed its pipe, in seconds. Its exit code gives the reason."""
_PROGRAM = """
import sys
descriptor, parent, seconds, memory, *sys.path = sys.argv[1:]
from caption_assets.workers.worker import work
work(int(descriptor), int(parent), float(seconds), int(memory))
"""
"""Program of the process. multiprocessing is not used: it imports the caller's main module. This would run a script
without a main guard again in each worker, and fails for a script from stdin."""


class WorkerCrashed(Exception):
    """A worker that ended while it ran a job."""

    def __init__(self, exit_code: int | None) -> None:
        super().__init__(f"the worker process ended (exit code {exit_code})")
        self.exit_code = exit_code
        """Exit code; if negative, the signal that ended it."""


class WorkerLost(WorkerCrashed):
    """A worker that ended before it started a job, or by SIGTERM: the job can be retried in another."""


class Worker:
    """A process with a pipe of its own, so that its crash affects no other worker.

    The thread that creates it must outlive it: the kernel ends the process with that thread.

    Args:
        seconds: maximum wall time, and maximum CPU time, of a job.
        memory: maximum private memory of the process, in bytes.
    """

    def __init__(self, seconds: float, memory: int) -> None:
        self._seconds = seconds
        self._pipe, theirs = Pipe()
        arguments = [theirs.fileno(), os.getpid(), seconds, memory, *sys.path]
        with theirs:
            # -P: the working directory is not added to the import path.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    @property
    def is_alive(self) -> bool:
        """Whether the process is running."""
        return self._process.poll() is None

    def run(self, call: Callable[[], Any]) -> Any:
        """Call a function in the worker and return its result.

        Raises:
            TimeoutError: if it exceeds the time limit; the worker is killed.
            WorkerLost: if the worker ended before it started the job, or by SIGTERM.
            WorkerCrashed: if the worker ended later.
            Exception: whatever the function raises.
        """
        message = pickle.dumps(call)
        failure: type[WorkerCrashed] = WorkerLost
        try:
            self._pipe.send_bytes(message)
            self._receive_within(START_SECONDS)
            failure = WorkerCrashed
            reply = self._receive_within(self._seconds)
        except TimeoutError:  # a subclass of OSError
            raise
        except (EOFError, OSError):  # OSError if a message is truncated
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(EXIT_SECONDS)
            self.kill()
            if self._process.returncode == -signal.SIGTERM:  # sent to all processes of the run's group, not by the clip
                failure = WorkerLost
            raise failure(self._process.returncode) from None
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
        """Kill the process."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Kill the process and close its pipe."""
        self.kill()
        self._pipe.close()


def work(descriptor: int, parent: int, seconds: float, memory: int) -> None:
    """Run jobs until the pipe is closed: the main function of the process.

    Args:
        descriptor: the worker's end of the pipe.
        parent: process id of the caller.
        seconds: see ``Worker``.
        memory: see ``Worker``.
    """
    pipe = Connection(descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run handles it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the run's parent may ignore it
    set_parent_death_signal(parent)
    os.nice(NICENESS)
    # The address space is not limited: libraries reserve far more of it than they use.
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            message = pipe.recv_bytes()
        except EOFError:
            return
        call = _unpickle(message)
        pipe.send_bytes(b"")  # the job's time starts
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + seconds) + 1, hard))
        pipe.send_bytes(_pickled_outcome(call))


def _unpickle(message: bytes) -> Callable[[], Any]:
    """The job, or one that raises the error if it cannot be unpickled."""
    try:
        call: Callable[[], Any] = pickle.loads(message)
    except Exception as error:
        reason: Exception = error
        if isinstance(error, (AttributeError, ImportError)):
            reason = RuntimeError(f"a worker cannot import the job's function ({error}): define it in a module")

        def call() -> Any:
            raise reason

    return call


def _pickled_outcome(call: Callable[[], Any]) -> bytes:
    """Call a function, and pickle whether it succeeded, and its result or error."""
    try:
        return pickle.dumps((True, call()))
    except Exception as error:
        try:
            reply = pickle.dumps((False, error))
            pickle.loads(reply)  # some errors can be pickled but not unpickled
        except Exception:
            reply = pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))
        return reply
