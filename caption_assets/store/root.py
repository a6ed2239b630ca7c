"""The folder that everything is read from or written to: local or in object storage, behind one fsspec interface."""

from __future__ import annotations

import errno
import os
import posixpath
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from caption_assets.errors import CaptionAssetsError


class StoreError(CaptionAssetsError):
    """A place that cannot be read or written, with the reason and the remedy in the message."""


@dataclass(frozen=True, slots=True)
class Root:
    """One fsspec folder. All paths given to its methods are relative to it and use forward slashes."""

    url: str
    """As the user wrote it: a local path, ``file://...`` or ``s3://bucket/prefix``."""
    fs: AbstractFileSystem
    path: str
    """The folder as ``fs`` names it, without a protocol."""

    @classmethod
    def open(cls, url: str) -> Root:
        """Resolve ``url`` without touching it.

        Raises:
            StoreError: if no fsspec implementation knows its protocol.
        """
        try:
            fs, path = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise StoreError(
                f"{url!r} is no place this installation can open ({error}): give a local folder or s3://bucket/prefix"
            ) from error
        return cls(url=url, fs=fs, path=path.rstrip("/"))

    @property
    def is_local(self) -> bool:
        """Whether it lies on a file system of this machine."""
        return isinstance(self.fs, LocalFileSystem)

    def full(self, path: str) -> str:
        """``path`` as the file system names it."""
        return posixpath.join(self.path, path) if path else self.path

    def address(self, path: str) -> str:
        """``path`` as a person or another program would open it: a local path, or a URL with its protocol."""
        return self.full(path) if self.is_local else str(self.fs.unstrip_protocol(self.full(path)))

    def holds(self, path: str) -> bool:
        """Whether ``path`` lies below the root once links are followed. Object stores have none."""
        if not self.is_local:
            return True
        return Path(os.path.realpath(self.full(path))).is_relative_to(os.path.realpath(self.path))

    def exists(self, path: str) -> bool:
        """Whether there is an object or folder at ``path``."""
        return bool(self.fs.exists(self.full(path)))

    def read(self, path: str) -> bytes:
        """The whole object.

        Raises:
            FileNotFoundError: if there is none.
        """
        return bytes(self.fs.cat_file(self.full(path)))

    def write(self, path: str, data: bytes) -> None:
        """Publish an object in one atomic step: a reader sees the old one or the new one, never a part.

        Raises:
            StoreError: if the place cannot be written.
        """
        self._publish(path, lambda target: self.fs.pipe_file(target, data))

    def upload(self, path: str, file: Path) -> None:
        """Publish a local file in one atomic step.

        Raises:
            StoreError: if the place cannot be written.
        """
        self._publish(path, lambda target: self.fs.put_file(str(file), target))

    def create(self, path: str, data: bytes) -> bool:
        """Write an object unless there is one already: of many who try at the same time, one succeeds.

        Args:
            path: where to.
            data: unlike any other caller's, for a store may take the write and fail to say so; what is found is then
                compared.

        Returns:
            Whether this call made the object.

        Raises:
            StoreError: if the place cannot be written.
        """
        full = self.full(path)
        try:
            if self.is_local:
                self._link(full, data)
            else:
                self.fs.pipe_file(full, data, mode="create")
        except FileExistsError:
            return self.read(path) == data
        except OSError as error:
            if error.errno == errno.EINVAL:  # s3fs, where the store's answer does not name the condition
                return self.read(path) == data
            raise StoreError(f"cannot write {self.address(path)}: {error}") from error
        return True

    def _link(self, full: str, data: bytes) -> None:
        """A local file appears whole or not at all, and never in the place of another."""
        folder, name = posixpath.split(full)
        self.fs.makedirs(folder, exist_ok=True)
        unfinished = Path(folder, f".{name}.{uuid.uuid4().hex}.tmp")
        try:
            unfinished.write_bytes(data)
            os.link(unfinished, full)
        finally:
            unfinished.unlink(missing_ok=True)

    def remove(self, path: str) -> None:
        """Remove an object; nothing happens if there is none.

        Raises:
            StoreError: if it cannot be removed.
        """
        try:
            self.fs.rm_file(self.full(path))
        except FileNotFoundError:
            return
        except Exception as error:  # as above
            raise StoreError(f"cannot remove {self.address(path)}: {error}") from error

    def age(self, path: str) -> float:
        """Seconds since an object was written, by the store's own clock.

        Raises:
            FileNotFoundError: if there is none.
        """
        written = self.fs.modified(self.full(path))
        probe = f"{path}.{uuid.uuid4().hex}.now"
        self.write(probe, b"")
        try:
            return float((self.fs.modified(self.full(probe)) - written).total_seconds())
        finally:
            self.remove(probe)

    def names(self, path: str) -> list[str]:
        """What lies directly below a folder, by name, sorted; nothing if there is no such folder."""
        try:
            found = [entry["name"].rstrip("/").rpartition("/")[2] for entry in self.entries(path)]
        except FileNotFoundError:
            return []
        return [name for name in found if not (name.startswith(".") and name.endswith(".tmp"))]

    def _publish(self, path: str, put: Callable[[str], object]) -> None:
        """An object store's upload is atomic by itself; a local file is written beside its place and renamed."""
        full = self.full(path)
        try:
            if self.is_local:
                self._put_and_rename(full, put)
            else:
                put(full)
        except Exception as error:  # stores have many: OSError, botocore's, their clients'
            raise StoreError(f"cannot write {self.address(path)}: {error}") from error

    def _put_and_rename(self, full: str, put: Callable[[str], object]) -> None:
        folder, name = posixpath.split(full)
        self.fs.makedirs(folder, exist_ok=True)
        unfinished = posixpath.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")  # readers of datasets skip dot files
        try:
            put(unfinished)
            os.replace(unfinished, full)
        finally:
            Path(unfinished).unlink(missing_ok=True)

    def check_writable(self, setting: str) -> None:
        """Write and remove a probe object.

        Args:
            setting: name of the variable that holds this root's URL, for the message.

        Raises:
            StoreError: if that fails, or if a local root's parent folder does not exist.
        """
        remedy = "name a folder or a bucket's prefix that this user may write"
        if self.is_local and not Path(self.path).parent.is_dir():
            raise StoreError(f"{setting} is {self.url!r}, but {Path(self.path).parent} does not exist: {remedy}")
        probe = f"_probe-{uuid.uuid4().hex}"
        try:
            self.write(probe, b"")
            self.fs.rm_file(self.full(probe))
        except Exception as error:
            raise StoreError(f"{setting} is {self.url!r}, which cannot be written ({error}): {remedy}") from error

    def entries(self, path: str = "") -> Iterator[dict[str, Any]]:
        """The entries directly below ``path``, by name, each with fsspec's ``name``, ``size`` and ``type``.

        Raises:
            FileNotFoundError: if there is no such folder.
        """
        yield from sorted(self.fs.ls(self.full(path), detail=True, refresh=True), key=lambda entry: entry["name"])
