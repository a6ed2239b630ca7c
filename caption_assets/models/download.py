"""The download of weight files to this machine: resumable, verified, and flushed to disk."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from caption_assets.models.source import Source
from caption_assets.models.weights import ListedFile, Mismatch, OnProgress, WeightFile, WeightsError, format_size
from caption_assets.store.disk import disk_space, reason_of

PARALLEL_DOWNLOADS = 4
"""Number of concurrent downloads."""
ATTEMPTS = 2
"""Maximum number of downloads of a file whose content does not match its hash."""


class DownloadStopped(WeightsError):
    """The download was stopped, because another file failed or the process is stopping."""


class _ByteCounter:
    """The bytes of all concurrent downloads. It stops them all when one fails."""

    def __init__(self, total: int, on_progress: OnProgress) -> None:
        self.stopped = False
        self._total = total
        self._on_progress = on_progress
        self._done = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Count downloaded bytes."""
        if self.stopped:
            raise DownloadStopped
        with self._lock:
            self._done += count
            self._on_progress(min(self._done, self._total), self._total)  # a second attempt counts its bytes again


def download(
    source: Source,
    files: Sequence[ListedFile],
    folder: Path,
    on_verified: Callable[[WeightFile, Path], None],
    on_progress: OnProgress,
    *,
    first: frozenset[str] = frozenset(),
) -> None:
    """Download files, several at a time.

    Args:
        source: where the files are.
        files: the files.
        folder: the target folder; partial files of an earlier attempt are resumed.
        on_verified: called with each verified file and its path; by any thread, concurrently.
        on_progress: called with the progress.
        first: paths of files that are downloaded before all others, so that ``on_verified`` can reject the model early.

    Raises:
        WeightsError: if a file cannot be read or written, or does not match its hash.
    """
    counter = _ByteCounter(sum(file.size for file in files), on_progress)

    def download_one(file: ListedFile) -> None:
        path = folder / file.path
        on_verified(_download_verified(source, file, path, counter), path)

    for file in files:
        if file.path in first:
            download_one(file)
    others = [file for file in files if file.path not in first]
    pool = ThreadPoolExecutor(PARALLEL_DOWNLOADS, thread_name_prefix="weights")
    try:
        for finished in as_completed([pool.submit(download_one, file) for file in others]):
            finished.result()
    except BaseException as error:
        counter.stopped = True
        # A process that is being stopped must not wait for a stalled connection.
        pool.shutdown(wait=isinstance(error, Exception), cancel_futures=True)
        raise
    pool.shutdown()


def check_space(folder: Path, needed: int, setting: str) -> None:
    """Check that a folder's disk has enough free space.

    Args:
        folder: the target folder; it need not exist.
        needed: bytes.
        setting: the setting that chooses the folder, for the message.

    Raises:
        WeightsError: if there is too little space.
    """
    free, _ = disk_space(folder)
    if free < needed:
        raise WeightsError(
            f"{format_size(needed)} of weights do not fit into {folder}, which has {format_size(free)} free: free "
            f"space there, or choose a folder on another disk ({setting})"
        )


def remaining_sizes(files: Iterable[ListedFile], folder: Path) -> list[int]:
    """Bytes of each file that are still to be downloaded into ``folder``."""
    paths = ((file, folder / file.path) for file in files)
    return [max(file.size - path.stat().st_size, 0) if path.is_file() else file.size for file, path in paths]


class _ResumableFile(io.BufferedWriter):
    """A file that a resumed download appends to."""

    def __init__(self, path: Path, counter: _ByteCounter) -> None:
        super().__init__(io.FileIO(path, "a"))
        self._path = path
        self._counter = counter

    def write(self, data: object, /) -> int:
        """Write ``data`` and flush it, so that a full disk is reported here."""
        try:
            count = super().write(data)  # type: ignore[arg-type]
            self.flush()
        except OSError as error:
            raise WeightsError(
                f"cannot write {self._path}: {reason_of(error, self._path.parent)}; free space there and retry: the "
                "download resumes"
            ) from error
        self._counter.add(count)
        return count


def _download_verified(source: Source, file: ListedFile, path: Path, counter: _ByteCounter) -> WeightFile:
    path.parent.mkdir(parents=True, exist_ok=True)
    problem: Mismatch | None = None
    for _ in range(ATTEMPTS):
        if path.is_file() and (path.stat().st_size > file.size or not file.verifiable):
            path.unlink()  # the partial file is not from this file, or cannot be verified
        with _ResumableFile(path, counter) as target:
            counter.add(target.tell())
            source.copy(file, target)
            os.fsync(target.fileno())  # before the file counts as complete
        try:
            with path.open("rb") as content:
                return file.verify(content)
        except Mismatch as error:
            problem = error
            path.unlink()
    raise WeightsError(f"the download of {source.address}/{file.path} is damaged: {problem}; {source.remedy}")
