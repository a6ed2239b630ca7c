"""Progress messages in a run's log: downloaded bytes of weights, and captioned windows."""

from __future__ import annotations

import time
from datetime import timedelta

import dagster as dg

from caption_assets.models.download import DownloadStopped
from caption_assets.models.weights import format_size

INTERVAL_SECONDS = 10.0
"""Minimum time between two messages, apart from the last one."""


class DownloadProgress:
    """Logs the number of downloaded bytes at intervals and at the end."""

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
        if done == total or time.monotonic() - self._logged_at >= INTERVAL_SECONDS:
            self._logged_at = time.monotonic()
            self._log.info(f"weights: {format_size(done)} of {format_size(total)}")


class WindowProgress:
    """Rate and remaining time of a run's windows. Measured from the first one, to exclude the engine's start."""

    def __init__(self) -> None:
        self._expected = 0
        self._done = 0
        self._first_at = self._logged_at = time.monotonic()

    def expect(self, windows: int) -> None:
        """Add windows that are to be captioned."""
        self._expected += windows

    def advance(self, *, last: bool) -> str | None:
        """Count a window. Returns rate and remaining time at intervals and for the ``last`` window, else None."""
        now = time.monotonic()
        if not self._done:
            self._first_at = now
        self._done += 1
        if not last and now - self._logged_at < INTERVAL_SECONDS:
            return None
        self._logged_at = now
        if self._done < 2:
            return "the first window of this run"
        rate = (self._done - 1) / max(now - self._first_at, 1e-3)
        left = timedelta(seconds=round((self._expected - self._done) / rate))
        return f"{rate:.1f} windows/s, {left} left for the shards in progress"
