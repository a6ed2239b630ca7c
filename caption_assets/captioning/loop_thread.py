"""An event loop in a thread of its own, so that callers may or may not have one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """A running event loop and its thread.

    Args:
        name: name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and wait for its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def start(self, coroutine: Coroutine[Any, Any, T], on_end: Callable[[asyncio.Task[T]], object]) -> asyncio.Task[T]:
        """Start a coroutine. ``on_end`` is called in the loop's thread when it has ended, also if it is canceled."""

        async def create() -> asyncio.Task[T]:
            task = asyncio.create_task(coroutine)
            task.add_done_callback(on_end)
            return task

        return self.run(create())

    def cancel(self, task: asyncio.Task[Any]) -> None:
        """Cancel a task, without waiting for its end."""
        if not task.done():
            self._loop.call_soon_threadsafe(task.cancel)

    def stop(self) -> None:
        """Stop the loop and its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
