from __future__ import annotations

from concurrent.futures import Future
from threading import Thread

import pytest

from caption_assets.workers.job_queue import MAX_OPEN_CLIPS, JobQueue, SandboxJob

pytestmark = pytest.mark.fast


def job(name: str, affinity: str | None = None) -> SandboxJob:
    return SandboxJob(Future(), lambda: name, affinity)


def names(queue: JobQueue, *workers: int) -> list[str]:
    """The jobs that workers take, in this order of workers."""
    found = [queue.get(worker) for worker in workers]
    return [one.call() for one in found if one]


def test_take_returns_jobs_in_order() -> None:
    queue = JobQueue()
    for name in "abc":
        queue.put(job(name))
    assert names(queue, 0, 1, 0) == ["a", "b", "c"]


def test_jobs_with_the_same_affinity_go_to_the_same_worker_and_other_jobs_overtake_them() -> None:
    queue = JobQueue()
    for one in (job("a1", "a"), job("a2", "a"), job("b")):
        queue.put(one)
    assert names(queue, 0, 1, 0) == ["a1", "b", "a2"]


def test_an_affinity_ends_after_a_few_others() -> None:
    queue = JobQueue()
    for name in [*map(str, range(MAX_OPEN_CLIPS + 1)), "0"]:
        queue.put(job(name, name))
    assert names(queue, *[0] * (MAX_OPEN_CLIPS + 1), 1) == [*map(str, range(MAX_OPEN_CLIPS + 1)), "0"]


def test_end_wakes_waiting_workers_and_returns_the_waiting_jobs() -> None:
    queue = JobQueue()
    taken: list[SandboxJob | None] = []
    waiting = Thread(target=lambda: taken.append(queue.get(0)))
    waiting.start()
    assert queue.end() == []
    waiting.join()
    assert taken == [None]
    queue.put(left := job("left"))
    assert queue.get(0) is None
    assert queue.end() == [left]
