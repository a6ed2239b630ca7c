"""Models on this machine's disk, beside the engine: fetched from the mirror, verified, removed when others need room.

Of a revision there lie side by side: its folder, named by the hash of its manifest; ``.arriving``, what has come of it
so far; ``.verified``, what each file looked like when its hash was last compared; ``.lock``, held by who brings files;
and ``.use``, held by all who use them, and as old as their last use.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from caption_assets.models.checkpoint import Checkpoint
from caption_assets.models.download import STREAMS, arrive, check_space, to_come
from caption_assets.models.mirror import mirror_of, read_manifest
from caption_assets.models.weights import ListedFile, Mismatch, OnProgress, WeightFile, WeightsError, in_words, silent
from caption_assets.store.disk import reason_of
from caption_assets.store.root import Root


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """The settings of the cache."""

    cache: Path
    """Its folder; may begin with ``~``, which another machine's process expands in its own way."""
    cache_gb: float | None = None
    """Maximum size of all models in it, in GiB; None for no limit."""
    verify: bool = False
    """Verify the hashes of all files each time."""

    @property
    def folder(self) -> Path:
        """The folder on this machine."""
        return self.cache.expanduser()

    @property
    def limit(self) -> int | None:
        """Maximum size, in bytes."""
        return None if self.cache_gb is None else int(self.cache_gb * 2**30)


_in_use: dict[Path, int] = {}
"""Descriptors by which this process holds the ``.use`` files of its models until it ends, however it may end."""


def ensure_local(
    root: Root,
    checkpoint: Checkpoint,
    cache: Path,
    *,
    limit: int | None = None,
    verify: bool = False,
    on_progress: OnProgress = silent,
) -> Path:
    """The folder on this machine from which the engine loads a checkpoint, fetched from the mirror if need be.

    The folder appears under its name, in one rename, when every hash has been compared. Later a file's hash is compared
    again if its size or time of change is another than then; files that are damaged or missing are fetched again alone.
    Nobody removes the folder until this process has ended.

    Args:
        root: which holds the mirror.
        checkpoint: the model or adapter.
        cache: folder for all models.
        limit: most bytes that all models in it may take; the least recently used make room. None for no limit.
        verify: compare all hashes, whatever the files look like.
        on_progress: called with the progress of the download.

    Raises:
        WeightsError: if the mirror does not hold it, a file of it is not what its manifest says, or there is no
            room for it.
    """
    manifest, mirror = read_manifest(root, checkpoint), mirror_of(root, checkpoint)
    entry = _Entry(cache / checkpoint.folder / manifest.digest[:16])
    try:
        entry.folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(entry.lock):
            entry.use()
            missing = entry.missing(manifest.listed, verify)
            needed = sum(to_come(missing, entry.arriving))
            if limit is not None:
                _make_room(cache, needed, limit)
            check_space(entry.arriving, needed, "CAPTION_CACHE")
            arrive(mirror, missing, entry.arriving, entry.keep, on_progress)
            entry.complete()
    except OSError as error:
        raise WeightsError(
            f"cannot use {cache} for weights ({reason_of(error, cache)}): free space there, or name another folder of "
            "this machine (CAPTION_CACHE)"
        ) from error
    return entry.folder


class _Entry:
    """One revision of a model in the cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.arriving = folder.with_name(f"{folder.name}.arriving")
        self.lock = folder.with_name(f"{folder.name}.lock")
        self._use = folder.with_name(f"{folder.name}.use")
        self._verified = folder.with_name(f"{folder.name}.verified")
        self._stamps: dict[str, list[int]] = {}
        self._writing = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes of what lies in it."""
        return _size(self.folder) + _size(self.arriving)

    @property
    def last_use(self) -> int:
        """When it was last asked for, in nanoseconds."""
        return self._use.stat().st_mtime_ns

    def use(self) -> None:
        """Keep others from removing it until this process ends."""
        if self.folder not in _in_use:
            descriptor = os.open(self._use, os.O_RDWR | os.O_CREAT)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            _in_use[self.folder] = descriptor
        os.utime(self._use)

    def missing(self, files: Sequence[ListedFile], verify: bool) -> list[ListedFile]:
        """The files that are not there, or not as they should be."""
        with suppress(FileNotFoundError, ValueError):
            self._stamps = json.loads(self._verified.read_bytes())
        if verify:
            self._stamps = {}
        with ThreadPoolExecutor(STREAMS) as pool:
            sound = list(pool.map(self._is_sound, files))
        self._write_stamps()
        return [file for file, is_sound in zip(files, sound, strict=True) if not is_sound]

    def keep(self, file: WeightFile, path: Path) -> None:
        """Take a file that has arrived: to the others, if they were there before it."""
        if self.folder.is_dir():
            target = self.folder / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
            path = target
        with self._writing:
            self._stamps[file.path] = _stamp(path)
            self._write_stamps()

    def complete(self) -> None:
        """Give the folder its name, all files being there."""
        if self.folder.is_dir():
            shutil.rmtree(self.arriving, ignore_errors=True)
        else:
            os.replace(self.arriving, self.folder)

    def remove(self) -> int:
        """Remove it, unless somebody uses it, and return the bytes that this has freed."""
        with suppress(Timeout, BlockingIOError), FileLock(self.lock, timeout=0), self._use.open() as used_by:
            fcntl.flock(used_by, fcntl.LOCK_EX | fcntl.LOCK_NB)
            freed = self.size
            shutil.rmtree(self.folder, ignore_errors=True)
            shutil.rmtree(self.arriving, ignore_errors=True)
            return freed - self.size
        return 0

    def _is_sound(self, file: ListedFile) -> bool:
        path = (self.folder if self.folder.is_dir() else self.arriving) / file.path
        if not path.is_file() or path.stat().st_size != file.size:
            return False
        if self._stamps.get(file.path) != (stamp := _stamp(path)):
            try:
                with path.open("rb") as content:
                    file.examine(content)
            except Mismatch:
                return False
            self._stamps[file.path] = stamp
        return True

    def _write_stamps(self) -> None:
        unfinished = self._verified.with_name(f"{self._verified.name}.tmp")
        unfinished.write_text(json.dumps(self._stamps))
        os.replace(unfinished, self._verified)


def _stamp(path: Path) -> list[int]:
    """What a file looks like without being read: its size in bytes, and its time of change in nanoseconds."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _size(folder: Path) -> int:
    """Bytes of a folder's files; others may be moving or removing some of them."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                size += Path(place, name).stat().st_size
    return size


def _make_room(cache: Path, needed: int, limit: int) -> None:
    """Remove the models that were not used for the longest time, until ``needed`` bytes more are within the limit.

    Raises:
        WeightsError: if those in use leave too little.
    """
    entries = [_Entry(path.with_suffix("")) for path in cache.glob("*/*/*.use")]
    total = sum(entry.size for entry in entries) + needed
    for entry in sorted(entries, key=lambda entry: entry.last_use):
        if total > limit:
            total -= entry.remove()
    if total > limit and needed:
        raise WeightsError(
            f"CAPTION_CACHE_GB allows {in_words(limit)} of weights in {cache}, but with those in use there would be "
            f"{in_words(total)}: raise it, or leave it out"
        )
