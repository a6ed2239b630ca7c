"""How far files of weights are, told in the log of a run."""

import time

import dagster as dg

from caption_assets.models.weights import in_words

PROGRESS_SECONDS = 10.0


class WeightsProgress:
    """Logs the bytes that have come, at most every few seconds and at the end."""

    def __init__(self, log: dg.DagsterLogManager) -> None:
        self._log = log
        self._last_word = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Is told of each piece."""
        if done == total or time.monotonic() - self._last_word >= PROGRESS_SECONDS:
            self._last_word = time.monotonic()
            self._log.info(f"weights: {in_words(done)} of {in_words(total)}")
