"""How fast the windows of a run are done: in words for the log, and as a bar where a person watches."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from datetime import timedelta

from rich.console import Console
from rich.progress import Progress

PROGRESS_SECONDS = 10.0


class Pace:
    """Counts windows. The time begins with the first one done: before that the engine starts."""

    def __init__(self) -> None:
        self._expected = 0
        self._done = 0
        self._begun = self._last_word = time.monotonic()
        self._bar = _bar()
        self._windows = self._bar.add_task("windows", total=None)
        self._bar.start()

    def expect(self, windows: int) -> None:
        """So many more are to be done."""
        self._expected += windows
        self._bar.update(self._windows, total=self._expected)

    def tell(self, *, last: bool) -> str | None:
        """Another one is done: rate and time left in words, if there was no word for a while or this is the last."""
        now = time.monotonic()
        if not self._done:
            self._begun = now
        self._done += 1
        self._bar.advance(self._windows)
        if not last and now - self._last_word < PROGRESS_SECONDS:
            return None
        self._last_word = now
        if self._done < 2:
            return "the first of this run"
        rate = (self._done - 1) / max(now - self._begun, 1e-3)
        left = timedelta(seconds=round((self._expected - self._done) / rate))
        return f"{rate:.1f} windows/s, {left} left for the shards under way"

    def close(self) -> None:
        """Remove the bar."""
        self._bar.stop()


def _bar() -> Progress:
    """On the terminal itself, if this process is in front there: Dagster redirects a step's output into files."""
    with suppress(OSError):  # no terminal
        if os.tcgetpgrp(0) == os.getpgrp():
            terminal = open("/dev/tty", "w", encoding="utf-8")  # noqa: SIM115 - open for as long as the bar
            return Progress(console=Console(file=terminal), transient=True)
    return Progress(disable=True)
