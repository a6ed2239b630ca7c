"""The folder that everything is read from or written to: local or in object storage, behind one fsspec interface."""

from __future__ import annotations

import os
import posixpath
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import split_protocol, strip_protocol
from fsspec.implementations.local import LocalFileSystem

from caption_assets.store.access import STANDARD, Access
from caption_assets.store.disk import TEMPORARY_REMEDY, disk_room
from caption_assets.store.failure import (
    StoreError,
    error_code,
    explain,
    holds_secret,
    is_refusal,
    translate_store_errors,
)

COPY_BYTES = 16 << 20
"""Held at a time where an object is copied to this machine's disk."""
ROOT_REMEDY = "free space there, or move the root to a larger disk (CAPTION_ROOT)"
REFUSED_CREATION = frozenset({"PreconditionFailed", "412", "ConditionalRequestConflict"})
"""Codes of stores where there is an object already, or another writer was at it in the same moment."""


@dataclass(frozen=True, slots=True)
class Root:
    """One fsspec folder. All paths given to its methods are relative to it and use forward slashes."""

    url: str
    """As the user wrote it: a local path, ``file://...`` or ``s3://bucket/prefix``."""
    fs: AbstractFileSystem
    path: str
    """The folder as ``fs`` names it, without a protocol."""
    access: Access = STANDARD
    """How ``fs`` was opened, for what is opened elsewhere on behalf of this root."""

    @classmethod
    def open(cls, url: str, access: Access = STANDARD) -> Root:
        """Resolve ``url`` without touching it.

        Raises:
            StoreError: if no fsspec implementation knows its protocol, or it holds credentials.
        """
        if holds_secret(url):
            raise StoreError(
                "a folder's URL holds credentials, for which it is not repeated here: give s3://bucket/prefix alone, "
                "and credentials as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or by AWS_PROFILE"
            )
        try:
            fs = access.filesystem(split_protocol(url)[0] or "file")
        except (ValueError, ImportError) as error:
            raise StoreError(
                f"{url!r} is no place this installation can open ({error}): give a local folder or s3://bucket/prefix"
            ) from error
        return cls(url=url, fs=fs, path=strip_protocol(url).rstrip("/"), access=access)

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
        """Whether there is an object or folder at ``path``.

        Raises:
            StoreError: if the store does not say.
        """
        with translate_store_errors(f"cannot look up {self.address(path)}"):
            return bool(self.fs.exists(self.full(path)))

    def read(self, path: str) -> bytes:
        """The whole object, as one writer wrote it.

        Raises:
            FileNotFoundError: if there is none.
            StoreError: if it cannot be read.
        """
        self.check_file(path)
        with translate_store_errors(f"cannot read {self.address(path)}"):
            # One request: s3fs would read a large object in parts, which another writer may come between.
            return bytes(self.fs.cat_file(self.full(path), max_concurrency=1))

    def download(self, path: str, file: Path) -> None:
        """Copy an object to this machine's disk.

        Raises:
            FileNotFoundError: if there is none.
            StoreError: if it cannot be read, or the file not be written.
        """
        self.check_file(path)
        # Not get_file, with which s3fs asks only once for each part of a large object.
        with (
            translate_store_errors(f"cannot copy {self.address(path)} to {file}"),
            disk_room(file.parent, TEMPORARY_REMEDY),
            self.fs.open(self.full(path), "rb") as remote,
            file.open("wb") as local,
        ):
            shutil.copyfileobj(remote, local, COPY_BYTES)

    def check_file(self, path: str) -> None:
        """Refuse what is no file: a folder cannot be read, and a pipe would be waited for without end.

        Raises:
            StoreError: if there is something else at ``path``.
        """
        if self.is_local:
            with suppress(OSError):  # which reading reports
                if not stat.S_ISREG(os.stat(self.full(path)).st_mode):
                    raise StoreError(f"cannot read {self.address(path)}: it is a folder or a device, not a file")

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

        Only if the store honours this: see ``honours_create``.

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
        except Exception as error:
            # s3fs has a FileExistsError only for stores that name the condition.
            if not isinstance(error, FileExistsError) and error_code(error) not in REFUSED_CREATION:
                raise StoreError(f"cannot write {self.address(path)}: {explain(error)}") from error
            with suppress(FileNotFoundError):  # removed since
                return self.read(path) == data
            return False
        return True

    def honours_create(self) -> bool:
        """Whether ``create`` refuses to write where there is an object: some stores overwrite it. Tried out once.

        Of the stores that refuse, some let two through who come at the same moment; that is not tried.

        Raises:
            StoreError: if the place cannot be written.
        """
        return _honours_create(self)

    def age(self, path: str) -> float:
        """Seconds since an object was last written, by the store's own clock; S3 has whole ones, so it may be 1 off.

        To learn the time, another object is written beside it, and removed.

        Raises:
            FileNotFoundError: if there is none.
            StoreError: if the place cannot be read or written.
        """
        probe = posixpath.join(posixpath.dirname(self.full(path)), f".age-{uuid.uuid4().hex}.tmp")
        with translate_store_errors(f"cannot learn the age of {self.address(path)}"), disk_room(self.path, ROOT_REMEDY):
            try:
                self.fs.pipe_file(probe, b"")
                now = self.fs.modified(probe)  # first, so that an object written meanwhile is not taken for old
                seconds = (now - self.fs.modified(self.full(path))).total_seconds()
                return max(float(seconds), 0.0)
            finally:
                with suppress(FileNotFoundError):
                    self.fs.rm_file(probe)

    def _link(self, full: str, data: bytes) -> None:
        """A local file appears whole or not at all, and never in the place of another."""
        folder, name = posixpath.split(full)
        unfinished = Path(folder, f".{name}.{uuid.uuid4().hex}.tmp")
        with disk_room(folder, ROOT_REMEDY):
            self.fs.makedirs(folder, exist_ok=True)
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
        with translate_store_errors(f"cannot remove {self.address(path)}"), suppress(FileNotFoundError):
            self.fs.rm_file(self.full(path))

    def remove_folder(self, path: str) -> None:
        """Remove a folder and all that lies below it; nothing happens if there is none.

        Raises:
            StoreError: if something cannot be removed.
        """
        with translate_store_errors(f"cannot remove {self.address(path)}"), suppress(FileNotFoundError):
            if self.is_local:
                self.fs.rm(self.full(path), recursive=True)
            else:
                from caption_assets.store.s3 import delete_objects  # as for ``Access``

                delete_objects(self.fs, self.fs.find(self.full(path)))

    def signed(self, path: str, seconds: float) -> str:
        """An address under which anybody may read an object for a while: a secret. A local file's is its own.

        Raises:
            StoreError: if there is no such object, or the store cannot sign.
        """
        if not self.exists(path):
            raise StoreError(f"{self.address(path)} does not exist: materialize the shard's captions first")
        if self.is_local:
            return Path(self.full(path)).absolute().as_uri()
        with translate_store_errors(f"cannot sign an address of {self.address(path)}"):
            return str(self.fs.sign(self.full(path), expiration=round(seconds)))

    def names(self, path: str) -> list[str]:
        """What lies directly below a folder, by name, sorted; nothing if there is no such folder.

        Raises:
            StoreError: if it cannot be listed.
        """
        return [name for name, _ in self._below(path)]

    def files(self, path: str) -> list[str]:
        """Objects directly below a folder, by name, sorted: like ``names`` without folders, pipes and the like.

        Raises:
            StoreError: if it cannot be listed.
        """
        return [name for name, kind in self._below(path) if kind == "file"]

    def _below(self, path: str) -> Iterator[tuple[str, str]]:
        """Name and fsspec's type of what lies directly below a folder, without files that are still being written."""
        with suppress(FileNotFoundError):
            for entry in self.entries(path):
                name = entry["name"].rstrip("/").rpartition("/")[2]
                if not _is_unfinished(name):
                    yield name, entry["type"]

    def sizes(self, path: str) -> dict[str, int]:
        """The objects below a folder, at any depth: their sizes in bytes by path; none if there is no such folder.

        Files that another writer has not finished yet are left out.

        Raises:
            StoreError: if the folder cannot be listed.
        """
        base = self.full(path) + "/"
        with translate_store_errors(f"cannot list {self.address(path)}"):
            found = self.fs.find(base, detail=True)
        names = {entry["name"].removeprefix(base): int(entry["size"] or 0) for entry in found.values()}
        return {posixpath.join(path, name): size for name, size in names.items() if not _is_unfinished(name)}

    def move(self, path: str, target: str) -> None:
        """Move an object, in the place of another if there is one.

        A local file is renamed. Elsewhere the object is copied, and removed once the copy is found to be as long: a
        process that is killed in between leaves both, and may repeat the call.

        Raises:
            FileNotFoundError: if there is no such object.
            StoreError: if it cannot be moved.
        """
        old, new = self.full(path), self.full(target)
        with translate_store_errors(f"cannot move {self.address(path)} to {self.address(target)}"):
            if self.is_local:
                self.fs.makedirs(posixpath.dirname(new), exist_ok=True)
                shutil.move(old, new)
                return
            self.fs.cp_file(old, new)
            if self.fs.size(new) != self.fs.size(old):
                raise StoreError(f"{self.address(target)} is not as long as {self.address(path)} after the copy")
            self.fs.rm_file(old)

    def prune(self, path: str) -> None:
        """Remove the empty folders at and below ``path``. Object stores have none.

        Raises:
            StoreError: if one cannot be removed.
        """
        if not self.is_local:
            return
        with translate_store_errors(f"cannot remove {self.address(path)}"):
            for folder, _, _ in os.walk(self.full(path), topdown=False):
                with suppress(OSError):  # not empty
                    os.rmdir(folder)

    def _publish(self, path: str, put: Callable[[str], object]) -> None:
        try:
            self._put(path, put)
        except Exception as error:  # stores have many: OSError, botocore's, their clients'
            raise StoreError(f"cannot write {self.address(path)}: {explain(error)}") from error

    def _put(self, path: str, put: Callable[[str], object]) -> None:
        """An object store's upload is atomic by itself; a local file is written beside its place and renamed."""
        full = self.full(path)
        if self.is_local:
            self._put_and_rename(full, put)
        else:
            put(full)

    def _put_and_rename(self, full: str, put: Callable[[str], object]) -> None:
        folder, name = posixpath.split(full)
        unfinished = posixpath.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")  # readers of datasets skip dot files
        with disk_room(folder, ROOT_REMEDY):
            self.fs.makedirs(folder, exist_ok=True)
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
            self._put(probe, lambda target: self.fs.pipe_file(target, b""))
            self.fs.rm_file(self.full(probe))
        except Exception as error:
            raise StoreError(
                f"{setting} is {self.url!r}, which cannot be written ({explain(error)}): {remedy}"
            ) from error

    def entries(self, path: str = "") -> Iterator[dict[str, Any]]:
        """The entries directly below ``path``, by name, each with fsspec's ``name``, ``size`` and ``type``.

        Raises:
            FileNotFoundError: if there is no such folder.
            StoreError: if it cannot be listed.
        """
        with translate_store_errors(f"cannot list {self.address(path)}"):
            found = self.fs.ls(self.full(path), detail=True)
        yield from sorted(found, key=lambda entry: entry["name"])


def _is_unfinished(name: str) -> bool:
    """Whether a file is one that ``_put_and_rename``, ``_link`` or ``age`` are still writing."""
    name = posixpath.basename(name)
    return name.startswith(".") and name.endswith(".tmp")


@cache  # for a probe takes five requests
def _honours_create(root: Root) -> bool:
    probe = f"_probe-{uuid.uuid4().hex}"
    try:
        root.create(probe, b"first")
        return not root.create(probe, b"second")
    except StoreError as error:
        if not (error.__cause__ and is_refusal(error.__cause__)):
            raise
        root.write(probe, b"")  # if this is refused too, it is not for the condition
        return False
    finally:
        root.remove(probe)
