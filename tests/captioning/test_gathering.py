"""Tests of the gathering of windows into batches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.captioning.budget import FrameGrid
from caption_assets.captioning.captioner import caption
from caption_assets.captioning.gathering import LARGEST_BATCH, Gathering
from caption_assets.captioning.request import Completion, Request
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.captioning.window_job import WindowJob
from caption_assets.video.decode import Frames
from tests.captioning.fake_engine import FakeEngine, start_fake_engine
from tests.captioning.test_recipe import WINDOW
from tests.captioning.test_scheduling import BlackFrames
from tests.stages import two_stages

pytestmark = pytest.mark.fast


def batches(windows: int) -> list[int]:
    """Sizes of the batches of windows that are decoded one after another, while the engine is never the bottleneck."""

    async def run() -> list[int]:
        gathering, sizes = Gathering(), []
        started: set[int] = set()

        async def one(window: int) -> None:
            await gathering.start(window)
            started.add(window)

        for window in range(windows):
            gathering.add(window)
        async with asyncio.TaskGroup() as group:
            for window in range(windows):
                group.create_task(one(window))
                for _ in range(3):
                    await asyncio.sleep(0)
                if started:
                    sizes.append(len(started))
                for finished in started:
                    gathering.remove(finished)
                started.clear()
        return sizes

    return asyncio.run(asyncio.wait_for(run(), 20))


@given(st.integers(1, 300))
def test_batches_are_bounded_and_become_smaller_at_the_end(windows: int) -> None:
    sizes = batches(windows)
    assert sum(sizes) == windows
    assert sizes[0] == sizes[-1] == 1
    assert max(sizes) <= LARGEST_BATCH
    assert sizes == sorted(sizes[: sizes.index(max(sizes))]) + sorted(sizes[sizes.index(max(sizes)) :], reverse=True)
    assert len(sizes) <= 9 + windows / LARGEST_BATCH


DECODES = st.tuples(
    st.integers(0, 20),  # when it is decoded
    st.sampled_from(["captioned", "unreadable", "canceled"]),
    st.integers(0, 20),  # when it is canceled
    st.integers(1, 3),  # number of its stages
)


@given(st.lists(DECODES, max_size=60), st.integers(1, 40))
def test_every_window_starts_whatever_happens_to_the_others(
    decodes: list[tuple[int, str, int, int]], admitted: int
) -> None:
    async def run() -> None:
        gathering, room, started = Gathering(), asyncio.Semaphore(admitted), set()

        async def pause(steps: int) -> None:
            for _ in range(steps):
                await asyncio.sleep(0)

        async def stage(window: int, seconds: int) -> None:
            await gathering.start(window)
            started.add(window)
            await pause(seconds)
            await gathering.start(window)  # a later stage: it does not wait

        async def one(window: int, decoded: int, end: str, stages: int) -> None:
            try:
                await pause(decoded)
                if end != "unreadable":
                    await asyncio.gather(*(stage(window, number) for number in range(stages)))
            finally:
                gathering.remove(window)
                room.release()

        async def cancel(task: asyncio.Task[None], steps: int) -> None:
            await pause(steps)
            task.cancel()

        tasks, others = [], []
        for window, (decoded, end, canceled, stages) in enumerate(decodes):
            await room.acquire()
            gathering.add(window)
            tasks.append(asyncio.create_task(one(window, decoded, end, stages)))
            await asyncio.sleep(0)  # a task that never ran has nothing to clean up
            if end == "canceled":
                others.append(asyncio.create_task(cancel(tasks[-1], canceled)))
        await asyncio.wait_for(asyncio.gather(*tasks, *others, return_exceptions=True), 20)
        assert {window for window, (_, end, _, _) in enumerate(decodes) if end == "captioned"} <= started

    asyncio.run(asyncio.wait_for(run(), 60))


class CountingEngine(FakeEngine):
    """A fake engine that counts the times at which it had nothing to do."""

    capacity = replace(FakeEngine.capacity, windows=64)

    def __init__(self) -> None:
        super().__init__()
        self.idle = 0
        self._running = 0

    async def complete(self, request: Request) -> Completion:
        self._running += 1
        try:
            return await super().complete(request)
        finally:
            self._running -= 1
            self.idle += not self._running


class SlowFrames(BlackFrames):
    """A decoder that decodes one window after another, each for longer than the engine needs for one."""

    def __init__(self) -> None:
        self._worker = asyncio.Lock()

    async def frames(self, job: WindowJob, grid: FrameGrid) -> Frames:
        async with self._worker:
            for _ in range(200):
                await asyncio.sleep(0)
        return await super().frames(job, grid)


def test_slowly_decoded_windows_are_captioned_in_batches() -> None:
    recipe, engine, finished = two_stages(), CountingEngine(), []

    async def jobs() -> AsyncIterator[WindowJob]:
        for number in range(64):
            window = replace(WINDOW, window_id=f"w{number}", clip_key=f"{number}.mp4")
            yield WindowJob(window, lambda: [], recipe.stages, number=number)

    async def keep(job: WindowJob) -> None:
        finished.append(job)

    async def run() -> None:
        async with EngineSupervisor(lambda: start_fake_engine(engine)) as supervisor:
            await caption(supervisor, recipe, SlowFrames(), jobs(), keep)

    asyncio.run(asyncio.wait_for(run(), 60))
    assert sum(job.ok for job in finished) == 64
    assert engine.idle <= 24  # both stages of 12 batches, instead of 64 windows
