"""What the engine's time costs, shard by shard."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineTime:
    """What of the time for which a run held its engine goes to one shard."""

    seconds: float = 0.0
    """From when the shard before was published, or the engine was asked for, until this one was."""
    start_seconds: float | None = None
    """How long the run's engine took to start, its model fetched first; None if the run has none."""


class Meter:
    """Deals out the engine's time: added up over a run's shards, it is all the time until the last was published."""

    def __init__(self) -> None:
        self._dealt_until: float | None = None
        self._start_seconds: float | None = None

    def begin(self) -> None:
        """The engine is asked for."""
        self._dealt_until = time.monotonic()

    def ready(self) -> float:
        """It takes requests: seconds since it was asked for."""
        assert self._dealt_until is not None  # it was asked for
        self._start_seconds = time.monotonic() - self._dealt_until
        return self._start_seconds

    def read(self) -> EngineTime:
        """A shard that used the engine was published: the time since the last such reading."""
        if self._dealt_until is None:
            return EngineTime()
        before, self._dealt_until = self._dealt_until, time.monotonic()
        return EngineTime(self._dealt_until - before, self._start_seconds)
