"""The sandbox: worker processes for untrusted files, with memory and time limits, replaced when they crash."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Lock, Thread
from types import TracebackType
from typing import ParamSpec, TypeVar

from caption_assets.errors import UnreadableClip
from caption_assets.workers.job_queue import JobQueue, SandboxJob
from caption_assets.workers.worker import Worker, WorkerCrashed, WorkerLost

P = ParamSpec("P")
T = TypeVar("T")
MAX_WORKERS = 8
"""Maximum default number of workers: each decodes several windows a second, so more would outpace any engine."""
MAX_ATTEMPTS = 3
"""Maximum number of attempts of a job if its worker ends before the job starts."""


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """Limits of one job.

    Raises:
        ValueError: if a value is out of its range.
    """

    seconds: float = 120.0
    """Maximum wall time, and maximum CPU time, in seconds."""
    memory_gb: float = 4.0
    """Maximum private memory of a worker, in GiB."""

    def __post_init__(self) -> None:
        if self.seconds <= 0:
            raise ValueError(f"the time limit is {self.seconds} s: give a number above 0")
        if self.memory_gb < 1:
            raise ValueError(f"the memory limit is {self.memory_gb} GiB: give at least 1, which the libraries need")


class Sandbox:
    """A pool of worker processes. If a worker crashes or exceeds a limit, only its job fails, and it is replaced.

    One thread per worker takes jobs from a shared queue. ``concurrent.futures`` is not used: its pool breaks as a whole
    if an idle worker crashes, as happens after a clip corrupts memory, or when the machine runs out of memory.

    Args:
        limits: limits of each job.
        workers: number of workers; None for one per available core, up to ``MAX_WORKERS``. Each starts with its first
            job; see also ``start``.
    """

    def __init__(self, limits: SandboxLimits | None = None, workers: int | None = None) -> None:
        self.limits = limits or SandboxLimits()
        self.workers = workers or min(len(os.sched_getaffinity(0)), MAX_WORKERS)
        self._jobs = JobQueue()
        self._threads: list[Thread] = []
        self._active: set[Worker] = set()
        self._starting = Lock()
        self._ended = False

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True  # before workers are killed: their jobs must not be retried
        for job in self._jobs.end():
            job.future.cancel()
        for worker in list(self._active):
            worker.kill()
        for thread in self._threads:
            thread.join()

    def start(self, load: Callable[[], object]) -> None:
        """Start the workers ahead of their first jobs, without waiting for them.

        Args:
            load: imports what the jobs need. Each worker calls it.
        """
        for _ in range(self.workers):
            self.submit(load)

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call a function in a worker. It must be defined in a module. Get its result with ``result``."""
        return self._put(None, partial(function, *args, **kwargs))

    def submit_with_affinity(
        self, affinity: Hashable, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        """Submit a job to the worker of the last job with the same affinity; see ``SandboxJob``."""
        return self._put(affinity, partial(function, *args, **kwargs))

    def _put(self, affinity: Hashable | None, call: Callable[[], T]) -> Future[T]:
        with self._starting:
            while len(self._threads) < self.workers:
                number = len(self._threads)
                self._threads.append(Thread(target=self._serve, args=(number,), name="sandbox", daemon=True))
                self._threads[-1].start()
        future: Future[T] = Future()
        self._jobs.put(SandboxJob(future, call, affinity))
        if self._ended:  # no worker takes it
            future.cancel()
        return future

    def result(self, job: Future[T]) -> T:
        """Wait for the result of a submitted job.

        Raises:
            UnreadableClip: if the worker crashed or exceeded a limit.
            Exception: whatever the function raises.
        """
        with self._translate_errors():
            return job.result()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Submit a job and wait for its result without blocking the event loop.

        Raises:
            UnreadableClip: if the worker crashed or exceeded a limit.
            Exception: whatever the function raises.
        """
        with self._translate_errors():
            return await asyncio.wrap_future(self.submit(function, *args, **kwargs))

    async def run_with_affinity(
        self, affinity: Hashable, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a job in the worker of the last job with the same affinity, see ``SandboxJob``, and wait for its result.

        Raises:
            UnreadableClip: if the worker crashed or exceeded a limit.
            Exception: whatever the function raises.
        """
        with self._translate_errors():
            return await asyncio.wrap_future(self._put(affinity, partial(function, *args, **kwargs)))

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        seconds, memory = self.limits.seconds, self.limits.memory_gb
        too_slow = UnreadableClip(
            "too_slow",
            f"the clip exceeds the time limit of {seconds:g} s: shorten it or raise CAPTION_DECODE_TIMEOUT_SECONDS",
        )
        try:
            yield
        except TimeoutError:
            raise too_slow from None
        except MemoryError:
            raise UnreadableClip(
                "too_large",
                f"the clip exceeds the memory limit of {memory:g} GiB: scale it down or raise CAPTION_DECODE_MEMORY_GB",
            ) from None
        except WorkerCrashed as error:
            if error.exit_code == -signal.SIGXCPU:
                raise too_slow from None
            raise UnreadableClip(
                "decoder_died", f"the clip crashed the worker process (exit code {error.exit_code})"
            ) from None

    def _serve(self, number: int) -> None:
        """Run jobs in one worker until the queue ends. Each thread of the sandbox runs this."""
        worker: Worker | None = None
        while (job := self._jobs.get(number)) is not None:
            worker = self._run_job(job, worker)
            del job  # frees its buffers before the next one arrives
        if worker:
            self._discard(worker)

    def _run_job(self, job: SandboxJob, worker: Worker | None) -> Worker | None:
        """Run a job in the worker or in a new one; returns the worker for the next job."""
        if not job.future.set_running_or_notify_cancel():
            return worker
        attempts = 0
        while not job.future.done():
            attempts += 1
            try:
                worker = self._ensure_alive(worker)
                job.future.set_result(worker.run(job.call))
            except WorkerLost as error:
                if self._ended or attempts == MAX_ATTEMPTS:
                    job.future.set_exception(error)
            except Exception as error:  # the caller waits for the future
                job.future.set_exception(error)
        return worker

    def _ensure_alive(self, worker: Worker | None) -> Worker:
        """The worker, or a new one in its place if it has ended."""
        if worker and worker.is_alive:
            return worker
        if worker:
            self._discard(worker)
        new = Worker(self.limits.seconds, int(self.limits.memory_gb * 2**30))
        self._active.add(new)
        return new

    def _discard(self, worker: Worker) -> None:
        self._active.discard(worker)
        worker.close()
