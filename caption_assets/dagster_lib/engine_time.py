"""The engine's time, divided among a run's shards."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineTime:
    """The share of one shard in the engine's time."""

    seconds: float = 0.0
    """Time from the previous shard's publication, or from the engine's request, to this shard's publication."""
    start_seconds: float | None = None
    """Time that the run's engine took to start, the model's download included; None if the run has no engine."""


class EngineClock:
    """Divides the engine's time among shards. The shares add up to the time until the last publication."""

    def __init__(self) -> None:
        self._divided_until: float | None = None
        self._start_seconds: float | None = None

    def start(self) -> None:
        """Start the clock: the engine is requested."""
        self._divided_until = time.monotonic()

    def ready(self) -> float:
        """Note that the engine takes requests; return the seconds since it was requested."""
        assert self._divided_until is not None  # it was requested
        self._start_seconds = time.monotonic() - self._divided_until
        return self._start_seconds

    def take(self) -> EngineTime:
        """The share of the shard that was just published and used the engine: the time since the last call."""
        if self._divided_until is None:
            return EngineTime()
        before, self._divided_until = self._divided_until, time.monotonic()
        return EngineTime(self._divided_until - before, self._start_seconds)
