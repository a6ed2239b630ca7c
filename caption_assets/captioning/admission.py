"""Admission of windows: bounds memory, and keeps each window's video cached until its stage 2."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import astuple, dataclass


@dataclass(frozen=True, slots=True)
class Load:
    """What a window takes while it is under way, and what there is of it in all."""

    windows: int
    tokens: int
    """Of the KV cache: prompt and answer."""
    cache_bytes: int
    """Of the engine's cache of preprocessed videos."""
    frame_bytes: int
    """Of this process's memory."""

    def __add__(self, other: Load) -> Load:
        return Load(*(one + two for one, two in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: Load) -> Load:
        return Load(*(one - two for one, two in zip(astuple(self), astuple(other), strict=True)))

    def within(self, limit: Load) -> bool:
        """Whether it exceeds ``limit`` in nothing."""
        return all(one <= two for one, two in zip(astuple(self), astuple(limit), strict=True))


NOTHING = Load(0, 0, 0, 0)


class Admission:
    """Lets windows in, in order, as long as all that are under way keep within a limit.

    A window is let in before it is decoded: when the engine is full, decoders are held back with it. One that exceeds
    the limit by itself is let in alone.
    """

    def __init__(self, limit: Load) -> None:
        self._limit = limit
        self._inside = NOTHING
        self._waiting: deque[tuple[Load, asyncio.Future[None]]] = deque()

    async def enter(self, load: Load) -> None:
        """Wait until there is room for ``load``; to be followed by ``leave`` with the same."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((load, turn))
        self._let_in()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._let_in()  # those that waited behind it
            else:
                self.leave(load)  # it was let in just before
            raise

    def leave(self, load: Load) -> None:
        """Give back what ``enter`` took."""
        self._inside -= load
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting:
            load, turn = self._waiting[0]
            if not turn.cancelled():  # its task may not have run since
                if not self._fits(load):
                    return
                self._inside += load
                turn.set_result(None)
            self._waiting.popleft()

    def _fits(self, load: Load) -> bool:
        return self._inside == NOTHING or (self._inside + load).within(self._limit)
