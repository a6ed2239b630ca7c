"""Progress messages in a run's log: downloaded bytes of weights, and captioned windows."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Self

import dagster as dg

from caption_assets.dagster_lib.private_dagster import HIDDEN_TAG_PREFIX
from caption_assets.models.download import DownloadStopped
from caption_assets.models.weights import format_size

INTERVAL_SECONDS = 10.0
"""Minimum time between two messages."""


class DownloadProgress:
    """Logs the number of downloaded bytes at intervals; the end of a download has a message of its own."""

    def __init__(self, log: dg.DagsterLogManager) -> None:
        self._log = log
        self._logged_at = time.monotonic()
        self._is_stopped = False

    def stop(self) -> None:
        """Stop the download at its next chunk. The next run resumes it."""
        self._is_stopped = True

    def __call__(self, done: int, total: int) -> None:
        """Log the progress.

        Raises:
            DownloadStopped: after ``stop``.
        """
        if self._is_stopped:
            raise DownloadStopped("the download was stopped")
        if time.monotonic() - self._logged_at >= INTERVAL_SECONDS:
            self._logged_at = time.monotonic()
            self._log.info(f"weights: {format_size(done)} of {format_size(total)}")


COMMAND_TAG = f"{HIDDEN_TAG_PREFIX}caption_assets.command"
"""Tag of a run that is one of several of a command."""


@dataclass(frozen=True, slots=True)
class CommandProgress:
    """The progress of a command before one of its runs, which is given to the run as a tag."""

    windows_before: int
    """Number of windows of its earlier runs."""
    windows: int
    """Number of windows of all its runs."""
    runs_after: int
    """Number of its later runs, each with an engine start."""
    seconds_before: float = 0.0
    """Duration of its earlier runs, in seconds."""

    @property
    def tags(self) -> dict[str, str]:
        """The tag of the run."""
        return {COMMAND_TAG: json.dumps(asdict(self))}

    @classmethod
    def of(cls, tags: Mapping[str, str]) -> Self | None:
        """The progress in the tags of a run; None if it is not the run of a command."""
        return cls(**json.loads(tags[COMMAND_TAG])) if COMMAND_TAG in tags else None


class WindowProgress:
    """Progress of a run's windows, or of all windows of its command.

    The rate is measured from the first window, to exclude the engine's start. In the first run of a command, the time
    to its first window is added for each later run; from the second run on, the remaining time follows from the
    duration of all runs, which includes engine starts and the recording of shards.
    """

    def __init__(self, command: CommandProgress | None = None) -> None:
        self._command = command
        self._expected = 0
        self._reused = 0
        self._done = 0
        self._started_at = self._first_at = self._logged_at = time.monotonic()

    def expect(self, windows: int, unfinished: int) -> None:
        """Add the windows of a shard, of which ``unfinished`` are to be captioned."""
        self._expected += unfinished
        self._reused += windows - unfinished

    def advance(self) -> str | None:
        """Count a window. Returns rate and remaining time at intervals, no more than the count for the first one."""
        now = time.monotonic()
        self._done += 1
        done, total = self._counts
        of_command = f"{done} of {total} in all" if self._command else ""
        if self._done == 1:
            self._first_at = self._logged_at = now
            return of_command
        if now - self._logged_at < INTERVAL_SECONDS:
            return None
        self._logged_at = now
        rate = (self._done - 1) / max(now - self._first_at, 1e-3)
        left = timedelta(seconds=round(self._seconds_left(now, rate)))
        speed = f"{rate:.1f} windows/s, {left} left"
        return f"{of_command}; {speed}" if self._command else f"{speed} for the shards in progress"

    def _seconds_left(self, now: float, rate: float) -> float:
        done, total = self._counts
        if self._command is None:
            return (total - done) / rate
        if self._command.seconds_before:
            return (self._command.seconds_before + now - self._started_at) / done * (total - done)
        return (total - done) / rate + self._command.runs_after * (self._first_at - self._started_at)

    @property
    def _counts(self) -> tuple[int, int]:
        """Number of finished windows and of all windows, of the command or of the opened shards."""
        if self._command is None:
            return self._done, self._expected
        before = self._command.windows_before + self._reused
        return before + self._done, max(self._command.windows, before + self._expected)
