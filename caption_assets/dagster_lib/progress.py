"""The progress of weights' downloads, in the log of a run."""

import time

import dagster as dg

from caption_assets.models.download import DownloadStopped
from caption_assets.models.weights import format_size

PROGRESS_SECONDS = 10.0


class WeightsProgress:
    """Logs the bytes that have come, at most every few seconds and at the end."""

    def __init__(self, log: dg.DagsterLogManager) -> None:
        self._log = log
        self._last_word = time.monotonic()
        self._is_stopped = False

    def stop(self) -> None:
        """Have the transfer that reports here fail with its next piece; what has come is continued the next time."""
        self._is_stopped = True

    def __call__(self, done: int, total: int) -> None:
        """Log a piece.

        Raises:
            DownloadStopped: after ``stop``.
        """
        if self._is_stopped:
            raise DownloadStopped("the download was stopped")
        if done == total or time.monotonic() - self._last_word >= PROGRESS_SECONDS:
            self._last_word = time.monotonic()
            self._log.info(f"weights: {format_size(done)} of {format_size(total)}")
