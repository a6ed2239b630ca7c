from __future__ import annotations

import asyncio
import time
from threading import Event

import pytest

from caption_assets.captioning import threads
from caption_assets.captioning.threads import in_thread, to_thread_uncancelled

pytestmark = pytest.mark.fast


def test_call_in_a_thread_returns_and_raises() -> None:
    assert asyncio.run(in_thread(divmod, 7, 2)) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        asyncio.run(to_thread_uncancelled(divmod, 7, 0))


def test_canceled_task_waits_for_its_call() -> None:
    done = Event()

    def write() -> None:
        time.sleep(0.3)
        done.set()

    async def run() -> None:
        writing = asyncio.create_task(to_thread_uncancelled(write))
        await asyncio.sleep(0.05)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert done.is_set()

    asyncio.run(run())


def test_hanging_call_delays_neither_a_canceled_task_nor_the_exit_of_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "CANCEL_SECONDS", 0.2)
    hung = Event()

    async def run() -> None:
        hanging = [asyncio.create_task(call(hung.wait, 60)) for call in (to_thread_uncancelled, in_thread)]
        await asyncio.sleep(0.05)
        for task in hanging:
            task.cancel()
        await asyncio.wait(hanging)

    begun = time.monotonic()
    asyncio.run(run())
    assert time.monotonic() - begun < 30
    hung.set()
