"""The local cache of models: downloaded from the mirror, verified, evicted when other models need space.

Each revision has five entries:

- a folder, named by the hash of its manifest;
- ``.arriving``, the incomplete download;
- ``.verified``, the size and modification time of each file when its hash was last verified;
- ``.lock``, locked by the downloading process;
- ``.use``, locked by all processes that use the model; its modification time is the time of the last use.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from filelock import FileLock, Timeout

from caption_assets.models.checkpoint import Checkpoint
from caption_assets.models.download import PARALLEL_DOWNLOADS, check_space, download, remaining_sizes
from caption_assets.models.mirror import mirror_of, publish, read_weights_manifest
from caption_assets.models.source import Folder, find_source
from caption_assets.models.weights import (
    MANIFEST,
    ListedFile,
    Mismatch,
    OnProgress,
    WeightFile,
    WeightsError,
    format_size,
    ignore_progress,
)
from caption_assets.store.access import STANDARD, Access
from caption_assets.store.disk import reason_of
from caption_assets.store.root import Root


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """The settings of the cache."""

    cache: Path
    """Its folder. A leading ``~`` is expanded by the process that uses the cache."""
    cache_gb: float | None = None
    """Maximum size of all models in it, in GiB; None for no limit."""
    verify: bool = False
    """Whether to verify the hashes of all files on every use."""

    @property
    def folder(self) -> Path:
        """The folder on this machine."""
        return self.cache.expanduser()

    @property
    def limit(self) -> int | None:
        """Maximum size, in bytes."""
        return None if self.cache_gb is None else int(self.cache_gb * 2**30)


_in_use: dict[Path, int] = {}
"""Descriptors of the ``.use`` files that this process locks. The kernel frees the locks when the process ends."""


def ensure_local(
    root: Root,
    checkpoint: Checkpoint,
    cache: Path,
    *,
    limit: int | None = None,
    verify: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> Path:
    """The local folder from which the engine loads a checkpoint, downloaded from the mirror if necessary.

    The folder gets its name, in one rename, when all hashes are verified. Later, a file is verified again if its size
    or modification time changed; only damaged or missing files are downloaded again. The folder is not evicted before
    this process has ended.

    Args:
        root: the root with the mirror.
        checkpoint: the model or adapter.
        cache: folder of all cached models.
        limit: maximum size of all models in it, in bytes; the least recently used are evicted. None for no limit.
        verify: verify all hashes, even of unchanged files.
        on_progress: called with the progress of the download.

    Raises:
        WeightsError: if the checkpoint is not in the mirror, a file does not match the manifest, or there is no space.
    """
    manifest, mirror = read_weights_manifest(root, checkpoint), mirror_of(root, checkpoint)
    entry = _Entry(cache / checkpoint.folder / manifest.digest[:16])
    with _report_unusable(cache):
        entry.folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(entry.lock):
            entry.use()
            missing = entry.missing(manifest.listed, verify)
            needed = sum(remaining_sizes(missing, entry.partial))
            if limit is not None:
                _evict(cache, needed, limit)
            check_space(entry.partial, needed, "CAPTION_CACHE")
            download(mirror, missing, entry.partial, entry.add_verified, on_progress)
            entry.complete()
    return entry.folder


@contextmanager
def _report_unusable(cache: Path) -> Iterator[None]:
    """Raise ``WeightsError`` with the folder and the remedy if the cache cannot be read or written."""
    try:
        yield
    except OSError as error:
        raise WeightsError(
            f"cannot use the weights cache {cache} ({reason_of(error, cache)}): free space there, or choose another "
            "local folder (CAPTION_CACHE)"
        ) from error


def ensure_local_from_source(
    checkpoint: Checkpoint,
    config: CacheConfig,
    access: Access = STANDARD,
    *,
    on_progress: OnProgress = ignore_progress,
    overrides: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """The local folder from which the engine loads a checkpoint, without a root and its mirror.

    The embedded model and a local folder are used where they are. Other checkpoints are downloaded from their source
    into the cache and verified, in the same form as from a mirror.

    Args:
        checkpoint: the model or adapter.
        config: the settings of the cache.
        access: access to a folder in object storage.
        on_progress: called with the progress of the download.
        overrides: vLLM's argument ``hf_overrides``: values that replace those of the model's ``config.json``.

    Raises:
        WeightsError: if the download fails, a file is not the published one, or there is no space.
    """
    source, cache = find_source(checkpoint, access), config.folder
    if isinstance(source, Folder) and source.root.is_local:
        source.kind.check(list(source.sizes()), source.address)
        return Path(source.address)
    with _report_unusable(cache):
        (cache / checkpoint.folder).parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{cache / checkpoint.folder}.lock"):
            if source.pinned and not config.verify and (cached := find_local(checkpoint, cache)):
                _Entry(cached).use()
                if cached.is_dir():  # otherwise it was evicted meanwhile
                    return cached
            root = Root.open(str(cache), access)
            published = publish(
                root, checkpoint, cache, on_progress=on_progress, overrides=overrides, root_setting="CAPTION_CACHE"
            )
            mirror, entry = mirror_of(root, checkpoint), _Entry(cache / checkpoint.folder / published.digest[:16])
            if not entry.folder.exists() and not entry.partial.exists():  # links: a copy would take the space twice
                shutil.copytree(
                    mirror.address, entry.partial, copy_function=os.link, ignore=shutil.ignore_patterns(MANIFEST)
                )
            folder = ensure_local(root, checkpoint, cache, limit=config.limit, verify=config.verify)
            root.remove_folder(mirror.path)
    return folder


def find_local(checkpoint: Checkpoint, cache: Path) -> Path | None:
    """A folder on this machine with a checkpoint's files: its source, or its latest use of the cache.

    No file is verified or protected from eviction: use it only to read small files.
    """
    if checkpoint.bundled or (checkpoint.path is not None and Path(checkpoint.path).is_dir()):
        return Path(find_source(checkpoint).address)
    entries = [_Entry(path.with_suffix("")) for path in (cache / checkpoint.folder).glob("*.use")]
    complete = [entry for entry in entries if entry.folder.is_dir()]
    return max(complete, key=lambda entry: entry.last_use).folder if complete else None


class _Entry:
    """One revision of a model in the cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.partial = folder.with_name(f"{folder.name}.arriving")
        self.lock = folder.with_name(f"{folder.name}.lock")
        self._use = folder.with_name(f"{folder.name}.use")
        self._verified = folder.with_name(f"{folder.name}.verified")
        self._signatures: dict[str, list[int]] = {}
        self._writing = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes of its files, complete and partial."""
        return _size(self.folder) + _size(self.partial)

    @property
    def last_use(self) -> int:
        """Time of its last use, in nanoseconds."""
        return self._use.stat().st_mtime_ns

    def use(self) -> None:
        """Protect it from eviction until this process ends."""
        if self.folder not in _in_use:
            descriptor = os.open(self._use, os.O_RDWR | os.O_CREAT)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            _in_use[self.folder] = descriptor
        os.utime(self._use)

    def missing(self, files: Sequence[ListedFile], verify: bool) -> list[ListedFile]:
        """The files that are missing or damaged."""
        with suppress(FileNotFoundError, ValueError):
            self._signatures = json.loads(self._verified.read_bytes())
        if verify:
            self._signatures = {}
        with ThreadPoolExecutor(PARALLEL_DOWNLOADS) as pool:
            intact = list(pool.map(self._is_intact, files))
        self._write_signatures()
        return [file for file, is_intact in zip(files, intact, strict=True) if not is_intact]

    def add_verified(self, file: WeightFile, path: Path) -> None:
        """Record a verified file. If it replaces a damaged file of a complete model, move it there."""
        if self.folder.is_dir():
            target = self.folder / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
            path = target
        with self._writing:
            self._signatures[file.path] = _signature(path)
            self._write_signatures()

    def complete(self) -> None:
        """Give the complete folder its name."""
        if self.folder.is_dir():
            shutil.rmtree(self.partial, ignore_errors=True)
        else:
            os.replace(self.partial, self.folder)

    def remove(self) -> int:
        """Remove it unless a process uses it, and return the number of bytes freed."""
        with suppress(Timeout, BlockingIOError), FileLock(self.lock, timeout=0), self._use.open() as use:
            fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
            freed = self.size
            shutil.rmtree(self.folder, ignore_errors=True)
            shutil.rmtree(self.partial, ignore_errors=True)
            return freed - self.size
        return 0

    def _is_intact(self, file: ListedFile) -> bool:
        path = (self.folder if self.folder.is_dir() else self.partial) / file.path
        if not path.is_file() or path.stat().st_size != file.size:
            return False
        if self._signatures.get(file.path) != (signature := _signature(path)):
            try:
                with path.open("rb") as content:
                    file.verify(content)
            except Mismatch:
                return False
            self._signatures[file.path] = signature
        return True

    def _write_signatures(self) -> None:
        unfinished = self._verified.with_name(f"{self._verified.name}.tmp")
        unfinished.write_text(json.dumps(self._signatures))
        os.replace(unfinished, self._verified)


def _signature(path: Path) -> list[int]:
    """A file's size in bytes and modification time in nanoseconds: a change shows without reading the file."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _size(folder: Path) -> int:
    """Bytes of a folder's files, which other processes may be moving or removing."""
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                size += Path(parent, name).stat().st_size
    return size


def _evict(cache: Path, needed: int, limit: int) -> None:
    """Remove the least recently used models until the cache has space for ``needed`` bytes within the limit.

    Raises:
        WeightsError: if the models in use leave too little space.
    """
    entries = [_Entry(path.with_suffix("")) for path in cache.glob("*/*/*.use")]
    total = sum(entry.size for entry in entries) + needed
    for entry in sorted(entries, key=lambda entry: entry.last_use):
        if total > limit:
            total -= entry.remove()
    if total > limit and needed:
        raise WeightsError(
            f"the weights cache {cache} would need {format_size(total)} with the models in use, but CAPTION_CACHE_GB "
            f"limits it to {format_size(limit)}: raise or unset it"
        )
