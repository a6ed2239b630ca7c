"""A step that is told to stop: it brings what it has done to safety first."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_until_sigterm(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` on an event loop of its own. On SIGTERM it is cancelled, and has the time it needs to end.

    Then the signal goes to whoever handled it before. Dagster takes it for a cancellation if the user asked for one,
    and for a failure, which may be retried, if not: so it is when a node is reclaimed.

    In other threads than the main one signals do not arrive; the work just runs.
    """
    if threading.current_thread() is not threading.main_thread():
        return asyncio.run(work)
    before = signal.getsignal(signal.SIGTERM)
    told = False

    async def cancellable() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None  # a coroutine runs in one

        def stop() -> None:
            nonlocal told
            if not told:  # once: told again, what is under way would break off
                task.cancel()
            told = True

        loop.add_signal_handler(signal.SIGTERM, stop)
        try:
            return await work
        finally:
            loop.remove_signal_handler(signal.SIGTERM)

    try:
        return asyncio.run(cancellable())
    finally:
        signal.signal(signal.SIGTERM, before)
        if told:
            signal.raise_signal(signal.SIGTERM)
