"""The gathering of windows: while decoding is the bottleneck, windows start in batches."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable

LARGEST_BATCH = 16
"""Maximum number of windows that wait for each other; the reference's batch size (NeMo Curator). A step of the engine
costs little more for 16 requests than for one."""


class Gathering:
    """Starts decoded windows together, so that the engine's steps serve several of them.

    A batch starts when ``LARGEST_BATCH`` windows are decoded, or as many as are still being decoded. Batches therefore
    become smaller towards the end, and the last window starts as soon as it is decoded. No window waits for one that
    has not been admitted. The first batches are small, so that the engine does not wait for a whole batch when it is
    the bottleneck. Windows are then decoded faster than the engine answers, so that a batch is always in progress.
    """

    def __init__(self) -> None:
        self._size = 1
        self._undecoded: set[Hashable] = set()
        self._waiting: set[Hashable] = set()
        self._started: set[Hashable] = set()
        self._batch = asyncio.Event()

    def add(self, window: Hashable) -> None:
        """Add an admitted window, which is not decoded yet."""
        self._undecoded.add(window)

    async def start(self, window: Hashable) -> None:
        """Wait until the batch of a decoded window starts. Return at once if it has started."""
        if window in self._started:
            return
        self._undecoded.discard(window)
        self._waiting.add(window)
        batch = self._batch
        self._start_batch()
        await batch.wait()

    def remove(self, window: Hashable) -> None:
        """Remove a window that is finished, has failed or was canceled, whether it has started or not."""
        for windows in (self._undecoded, self._waiting, self._started):
            windows.discard(window)
        self._start_batch()

    def _start_batch(self) -> None:
        """Start the waiting windows if there are enough of them."""
        if len(self._waiting) >= max(min(self._size, len(self._undecoded)), 1):
            self._batch.set()
            self._started |= self._waiting
            self._batch, self._waiting = asyncio.Event(), set()
            self._size = min(2 * self._size, LARGEST_BATCH)
