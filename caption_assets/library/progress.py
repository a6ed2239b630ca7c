"""Progress of the command ``caption`` on standard error: a bar in a terminal, otherwise plain lines."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

INTERVAL_SECONDS = 10.0
"""Interval between two plain lines."""


class PlainProgress(logging.Handler):
    """Progress as plain lines, and the messages of the package's log.

    Args:
        files: number of files.
        output: receives the captions.
    """

    def __init__(self, files: int, output: TextIO) -> None:
        super().__init__(logging.INFO)
        self._files = files
        self._output = output
        self._told_at: float | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message of the log."""
        self.message(f"warning: {record.getMessage()}" if record.levelno > logging.INFO else record.getMessage())

    def message(self, text: str) -> None:
        """Write a line to standard error."""
        print(text, file=sys.stderr, flush=True)

    def caption(self, text: str) -> None:
        """Write captions to the output."""
        print(text, file=self._output, flush=True)

    def update(self, done: int, windows: int) -> None:
        """Show the number of finished files and windows."""
        now = time.monotonic()
        if self._told_at is None:  # the first row, which needs no report
            self._told_at = now
        if now - self._told_at >= INTERVAL_SECONDS:
            self._told_at = now
            self.message(f"file {done} of {self._files}, windows so far: {windows}")


class BarProgress(PlainProgress):
    """Progress as a bar below the output."""

    def __init__(self, files: int, output: TextIO) -> None:
        super().__init__(files, output)
        self._bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("files"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,  # it would send captions to standard error
            redirect_stderr=False,
        )
        self._task = self._bar.add_task("reading the files", total=files)
        self._bar.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Show a message beside the bar; write a warning above it."""
        if record.levelno > logging.INFO:
            super().emit(record)
        else:
            self._bar.update(self._task, description=record.getMessage())

    def message(self, text: str) -> None:
        """Write a line to standard error, above the bar."""
        with self._above():
            super().message(text)

    def caption(self, text: str) -> None:
        """Write captions to the output, above the bar."""
        with self._above():
            super().caption(text)

    def update(self, done: int, windows: int) -> None:
        """Show the number of finished files and windows."""
        self._bar.update(self._task, completed=done, description=f"windows: {windows}")

    def close(self) -> None:
        """Remove the bar."""
        self._bar.stop()
        super().close()

    @contextmanager
    def _above(self) -> Iterator[None]:
        self._bar.stop()
        try:
            yield
        finally:
            self._bar.start()


@contextmanager
def show_progress(files: int, output: TextIO) -> Iterator[PlainProgress]:
    """Progress on standard error while the block runs, with the messages of the package's log.

    Args:
        files: number of files.
        output: receives the captions.
    """
    progress = (BarProgress if sys.stderr.isatty() else PlainProgress)(files, output)
    log = logging.getLogger("caption_assets")
    level = log.level
    log.addHandler(progress)
    log.setLevel(min(level, logging.INFO) if level else logging.INFO)
    try:
        yield progress
    finally:
        log.setLevel(level)
        log.removeHandler(progress)
        progress.close()
