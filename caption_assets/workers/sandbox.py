"""Worker processes for what files from strangers may break: limited in memory and time, replaced when they die."""

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
from caption_assets.workers.job_queue import Job, JobQueue
from caption_assets.workers.worker import Worker, WorkerCrashed, WorkerLost

P = ParamSpec("P")
T = TypeVar("T")
MAX_WORKERS = 8
"""By default: more would outrun any engine, for one decodes several windows a second."""
MAX_ATTEMPTS = 3
"""Workers that a job is given to, where they die before they begin it."""


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """What one job on a clip may take.

    Raises:
        ValueError: if a value is out of its range.
    """

    seconds: float = 120.0
    """Of wall time, and of CPU time."""
    memory_gb: float = 4.0
    """Of a worker's own memory, in GiB."""

    def __post_init__(self) -> None:
        if self.seconds <= 0:
            raise ValueError(f"the time limit is {self.seconds} s: give a number above 0")
        if self.memory_gb < 1:
            raise ValueError(f"the memory limit is {self.memory_gb} GiB: give at least 1, which the libraries take")


class Sandbox:
    """Worker processes. One that dies or overstays costs its job alone, and is replaced.

    Each has a thread here that gives it its jobs, from one queue. Libraries' pools are broken as a whole by a worker
    that dies while it has nothing to do, of what the last clip has done to it or of the machine's want of memory.

    Args:
        limits: for each job.
        workers: how many; None for one a core that this process may use, up to 8. Each is started with its first job.
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
        self._ended = True  # before the workers are, whose jobs would be given to others
        for job in self._jobs.end():
            job.future.cancel()
        for worker in list(self._active):
            worker.kill()
        for thread in self._threads:
            thread.join()

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a worker call a function of a module; ask ``result`` for what comes of it."""
        return self._put(None, partial(function, *args, **kwargs))

    def _put(self, affinity: Hashable | None, call: Callable[[], T]) -> Future[T]:
        with self._starting:
            while len(self._threads) < self.workers:
                number = len(self._threads)
                self._threads.append(Thread(target=self._serve, args=(number,), name="sandbox", daemon=True))
                self._threads[-1].start()
        future: Future[T] = Future()
        self._jobs.put(Job(future, call, affinity))
        return future

    def result(self, job: Future[T]) -> T:
        """Wait for a submitted job.

        Raises:
            UnreadableClip: if the worker died, or reached a limit; and whatever the function raises.
        """
        with self._translate_errors():
            return job.result()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Submit and wait, without holding the event loop.

        Raises:
            UnreadableClip: if the worker died, or reached a limit; and whatever the function raises.
        """
        with self._translate_errors():
            return await asyncio.wrap_future(self.submit(function, *args, **kwargs))

    async def run_with(self, affinity: Hashable, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As ``run``, in the worker that did the last job with this affinity, if it has done few others since.

        Raises:
            UnreadableClip: as there.
        """
        with self._translate_errors():
            return await asyncio.wrap_future(self._put(affinity, partial(function, *args, **kwargs)))

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        seconds, memory = self.limits.seconds, self.limits.memory_gb
        too_slow = UnreadableClip(
            "too_slow",
            f"the clip took longer than {seconds:g} s (CAPTION_DECODE_TIMEOUT_SECONDS): shorten it or raise the limit",
        )
        try:
            yield
        except TimeoutError:
            raise too_slow from None
        except MemoryError:
            raise UnreadableClip(
                "too_large",
                f"the clip needs more than {memory:g} GiB to be read (CAPTION_DECODE_MEMORY_GB): make it smaller or "
                "raise the limit",
            ) from None
        except WorkerCrashed as error:
            if error.exit_code == -signal.SIGXCPU:
                raise too_slow from None
            raise UnreadableClip(
                "decoder_died", f"the process that read the clip died of it (exit code {error.exit_code})"
            ) from None

    def _serve(self, number: int) -> None:
        """Give a worker jobs, until there is None; what each thread of the sandbox does."""
        worker: Worker | None = None
        while (job := self._jobs.take(number)) is not None:
            if not job.future.set_running_or_notify_cancel():
                continue
            attempts = 0
            while not job.future.done():
                attempts += 1
                try:
                    worker = self._ensure_alive(worker)
                    job.future.set_result(worker.do(job.call))
                except WorkerLost as error:
                    if self._ended or attempts == MAX_ATTEMPTS:
                        job.future.set_exception(error)
                except Exception as error:  # whatever it is, who waits must learn of it
                    job.future.set_exception(error)
        if worker:
            self._discard(worker)

    def _ensure_alive(self, worker: Worker | None) -> Worker:
        """That worker, or another in its place if it has died."""
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
