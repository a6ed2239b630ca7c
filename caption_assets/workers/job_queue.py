"""The job queue of a sandbox, with affinity of jobs to workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Condition
from typing import Any

MAX_OPEN_CLIPS = 2
"""Maximum number of clips that a worker keeps open, which is the maximum number of its affinities."""


@dataclass(frozen=True, slots=True)
class SandboxJob:
    """A function call, and the future for its result."""

    future: Future[Any]
    call: Callable[[], Any]
    affinity: Hashable | None = None
    """Jobs with the same affinity run in the same worker, until it has run jobs of ``MAX_OPEN_CLIPS`` others."""


class JobQueue:
    """A FIFO queue of jobs for threads, each of which runs one worker."""

    def __init__(self) -> None:
        self._waiting: deque[SandboxJob] = deque()
        self._changed = Condition()
        self._kept: dict[int, deque[Hashable]] = {}
        self._has_ended = False

    def put(self, job: SandboxJob) -> None:
        """Add a job."""
        with self._changed:
            self._waiting.append(job)
            self._changed.notify_all()

    def get(self, worker: int) -> SandboxJob | None:
        """Wait for a job for this worker and remove it from the queue; None after ``end``.

        Args:
            worker: number of the worker.
        """
        with self._changed:
            kept = self._kept.setdefault(worker, deque(maxlen=MAX_OPEN_CLIPS))
            while not self._has_ended:
                if job := next((job for job in self._waiting if self._is_eligible(worker, job)), None):
                    self._waiting.remove(job)
                    if job.affinity is not None:
                        if job.affinity in kept:
                            kept.remove(job.affinity)
                        kept.append(job.affinity)
                    return job
                self._changed.wait()
            return None

    def end(self) -> list[SandboxJob]:
        """Wake all waiting threads, and remove and return the waiting jobs."""
        with self._changed:
            self._has_ended = True
            waiting = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
            return waiting

    def _is_eligible(self, worker: int, job: SandboxJob) -> bool:
        if job.affinity is None or job.affinity in self._kept[worker]:
            return True
        return not any(job.affinity in kept for kept in self._kept.values())
