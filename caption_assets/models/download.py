"""Files of a model arriving on this machine's disk: continued where they were broken off, verified, made to last."""

from __future__ import annotations

import io
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from caption_assets.models.source import Source
from caption_assets.models.weights import ListedFile, Mismatch, OnProgress, WeightFile, WeightsError, in_words
from caption_assets.store.disk import reason_of

STREAMS = 4
"""Files that arrive at the same time."""
ATTEMPTS = 2
"""How often a file is fetched whose content is not the one that was listed."""


class Stopped(WeightsError):
    """Another file has failed or the transfer was stopped, so this one need not go on."""


class Meter:
    """Counts the bytes of all the files that arrive together, and stops them all when one fails."""

    def __init__(self, total: int, on_progress: OnProgress) -> None:
        self.stopped = False
        self._total = total
        self._on_progress = on_progress
        self._done = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Count bytes that have come."""
        if self.stopped:
            raise Stopped
        with self._lock:
            self._done += count
            self._on_progress(min(self._done, self._total), self._total)  # what comes twice is counted twice


def arrive(
    source: Source,
    files: Sequence[ListedFile],
    folder: Path,
    keep: Callable[[WeightFile, Path], None],
    on_progress: OnProgress,
    *,
    first: frozenset[str] = frozenset(),
) -> None:
    """Bring files to this disk, several at a time.

    Args:
        source: where they come from.
        files: which.
        folder: where to; what an earlier attempt has left in it is continued.
        keep: is given each file that has been verified, and where it lies; may be called by several threads at once.
        on_progress: called with the progress.
        first: paths of files that come before all others: ``keep`` may refuse the whole by them.

    Raises:
        WeightsError: if one cannot be read or written, or is not what it should be.
    """
    meter = Meter(sum(file.size for file in files), on_progress)

    def one(file: ListedFile) -> None:
        path = folder / file.path
        keep(_fetch(source, file, path, meter), path)

    for file in files:
        if file.path in first:
            one(file)
    others = [file for file in files if file.path not in first]
    pool = ThreadPoolExecutor(STREAMS, thread_name_prefix="weights")
    try:
        for arrival in as_completed([pool.submit(one, file) for file in others]):
            arrival.result()
    except BaseException as error:
        meter.stopped = True
        # A process that is told to stop does not wait for a connection that has stalled.
        pool.shutdown(wait=isinstance(error, Exception), cancel_futures=True)
        raise
    pool.shutdown()


def check_space(folder: Path, needed: int, setting: str) -> None:
    """Make sure that files will find room.

    Args:
        folder: where they will be written; need not exist.
        needed: bytes.
        setting: what names that folder, for the message.

    Raises:
        WeightsError: if there is less room.
    """
    there = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise WeightsError(
            f"{in_words(needed)} of weights are to be written to {folder}, where {in_words(free)} are free: make room "
            f"there, or name a folder on another disk ({setting})"
        )


def to_come(files: Iterable[ListedFile], folder: Path) -> list[int]:
    """Bytes of each file beyond what an earlier attempt has left in ``folder``."""
    paths = ((file, folder / file.path) for file in files)
    return [max(file.size - path.stat().st_size, 0) if path.is_file() else file.size for file, path in paths]


class _Target(io.BufferedWriter):
    """A file that is continued at its end."""

    def __init__(self, path: Path, meter: Meter) -> None:
        super().__init__(io.FileIO(path, "a"))
        self._path = path
        self._meter = meter

    def write(self, data: object, /) -> int:
        """Write all of ``data`` through to the system, so that a full disk is told of here."""
        try:
            count = super().write(data)  # type: ignore[arg-type]
            self.flush()
        except OSError as error:
            raise WeightsError(
                f"cannot write {self._path}: {reason_of(error, self._path.parent)}; make room there, and try again: "
                "what has come is kept"
            ) from error
        self._meter.add(count)
        return count


def _fetch(source: Source, file: ListedFile, path: Path, meter: Meter) -> WeightFile:
    path.parent.mkdir(parents=True, exist_ok=True)
    problem: Mismatch | None = None
    for _ in range(ATTEMPTS):
        if path.is_file() and (path.stat().st_size > file.size or not file.verifiable):
            path.unlink()  # no beginning of this file, or nobody could tell
        with _Target(path, meter) as target:
            meter.add(target.tell())
            source.copy(file, target)
            os.fsync(target.fileno())  # before anyone notes that it is whole
        try:
            with path.open("rb") as content:
                return file.examine(content)
        except Mismatch as error:
            problem = error
            path.unlink()
    raise WeightsError(f"{source.address}/{file.path} arrives damaged: {problem}; {source.remedy}")
