"""Admission of windows: bounds memory, and keeps each window's video cached until its last stage."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import astuple, dataclass


@dataclass(frozen=True, slots=True)
class Load:
    """Resources that a window takes while it is in progress; also their total."""

    windows: int
    tokens: int
    """Tokens in the KV cache: prompt and answer."""
    cache_bytes: int
    """Bytes in the engine's cache of preprocessed videos."""
    frame_bytes: int
    """Bytes of decoded frames in this process."""

    def __add__(self, other: Load) -> Load:
        return Load(*(one + two for one, two in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: Load) -> Load:
        return Load(*(one - two for one, two in zip(astuple(self), astuple(other), strict=True)))

    def within(self, limit: Load) -> bool:
        """Whether no resource exceeds ``limit``."""
        return all(one <= two for one, two in zip(astuple(self), astuple(limit), strict=True))


NO_LOAD = Load(0, 0, 0, 0)


class Admission:
    """Admits windows in order while the load of all windows in progress stays within a limit.

    A window is admitted before it is decoded, so that decoders wait too while the engine is full. A window that exceeds
    the limit by itself is admitted when no other is in progress.
    """

    def __init__(self, limit: Load) -> None:
        self._limit = limit
        self._in_use = NO_LOAD
        self._waiting: deque[tuple[Load, asyncio.Future[None]]] = deque()

    async def acquire(self, load: Load) -> None:
        """Wait until there is room for ``load``. Call ``release`` with the same load afterwards."""
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((load, admitted))
        self._admit()
        try:
            await admitted
        except asyncio.CancelledError:
            if admitted.cancelled():
                self._admit()  # the loads behind it may fit now
            else:
                self.release(load)  # it was admitted just before the cancellation
            raise

    def release(self, load: Load) -> None:
        """Release what ``acquire`` took."""
        self._in_use -= load
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            load, admitted = self._waiting[0]
            if not admitted.cancelled():  # a canceled task may not have run yet
                if not self._fits(load):
                    return
                self._in_use += load
                admitted.set_result(None)
            self._waiting.popleft()

    def _fits(self, load: Load) -> bool:
        return self._in_use == NO_LOAD or (self._in_use + load).within(self._limit)
