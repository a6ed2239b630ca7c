"""A root folder, local or in object storage: atomic writes, exclusive creation and listings over fsspec."""

from __future__ import annotations

import os
import posixpath
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import split_protocol, strip_protocol
from fsspec.implementations.local import LocalFileSystem

from caption_assets.store.access import STANDARD, Access
from caption_assets.store.disk import TEMPORARY_REMEDY, report_full_disk
from caption_assets.store.failure import (
    StoreError,
    error_code,
    explain,
    is_refusal,
    translate_store_errors,
    url_has_credentials,
)

COPY_BYTES = 16 << 20
"""Size of the chunks in which an object is copied to the local disk."""
ROOT_REMEDY = "free space there, or move the root to a larger disk (CAPTION_ROOT)"
REFUSED_CREATION = frozenset({"PreconditionFailed", "412", "ConditionalRequestConflict"})
"""Error codes of an exclusive creation: the object exists, or another writer is creating it."""


@dataclass(frozen=True, slots=True)
class Root:
    """A folder of an fsspec file system. Its methods take paths relative to it, with forward slashes."""

    url: str
    """The user's URL: a local path, ``file://...`` or ``s3://bucket/prefix``."""
    fs: AbstractFileSystem
    path: str
    """The folder's path in ``fs``, without a protocol."""
    access: Access = STANDARD
    """The options that ``fs`` was opened with."""

    @classmethod
    def open(cls, url: str, access: Access = STANDARD) -> Root:
        """Parse ``url`` without a request to the store.

        Raises:
            StoreError: if the protocol is not supported, or the URL contains credentials.
        """
        if url_has_credentials(url):
            raise StoreError(
                "a folder's URL contains credentials (it is not shown here): give s3://bucket/prefix alone, and "
                "credentials as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or by AWS_PROFILE"
            )
        try:
            fs = access.filesystem(split_protocol(url)[0] or "file")
        except (ValueError, ImportError) as error:
            raise StoreError(
                f"this installation cannot open {url!r} ({error}): give a local folder or s3://bucket/prefix"
            ) from error
        return cls(url=url, fs=fs, path=strip_protocol(url).rstrip("/"), access=access)

    @property
    def is_local(self) -> bool:
        """Whether it is on a local file system."""
        return isinstance(self.fs, LocalFileSystem)

    def full(self, path: str) -> str:
        """``path`` as a path of ``fs``."""
        return posixpath.join(self.path, path) if path else self.path

    def address(self, path: str) -> str:
        """``path`` for messages: a local path, or a URL with its protocol."""
        return self.full(path) if self.is_local else str(self.fs.unstrip_protocol(self.full(path)))

    def contains(self, path: str) -> bool:
        """Whether ``path`` is below the root once symbolic links are resolved. Object stores have no links."""
        if not self.is_local:
            return True
        return Path(os.path.realpath(self.full(path))).is_relative_to(os.path.realpath(self.path))

    def exists(self, path: str) -> bool:
        """Whether there is an object or folder at ``path``.

        Raises:
            StoreError: if the lookup fails.
        """
        with translate_store_errors(f"cannot look up {self.address(path)}"):
            return bool(self.fs.exists(self.full(path)))

    def read(self, path: str) -> bytes:
        """The content of an object.

        Raises:
            FileNotFoundError: if it does not exist.
            StoreError: if it cannot be read.
        """
        self.check_file(path)
        with translate_store_errors(f"cannot read {self.address(path)}"):
            # One request: s3fs would read a large object in parts, which could belong to different versions.
            return bytes(self.fs.cat_file(self.full(path), max_concurrency=1))

    def download(self, path: str, file: Path) -> None:
        """Copy an object to the local disk.

        Raises:
            FileNotFoundError: if it does not exist.
            StoreError: if the object cannot be read, or the file cannot be written.
        """
        self.check_file(path)
        # s3fs's get_file does not retry the parts of a large object.
        with (
            translate_store_errors(f"cannot copy {self.address(path)} to {file}"),
            report_full_disk(file.parent, TEMPORARY_REMEDY),
            self.fs.open(self.full(path), "rb") as remote,
            file.open("wb") as local,
        ):
            shutil.copyfileobj(remote, local, COPY_BYTES)

    def check_file(self, path: str) -> None:
        """Reject a local folder or device: reading a pipe would block without end.

        Raises:
            StoreError: if ``path`` is not a file.
        """
        if self.is_local:
            with suppress(OSError):  # a missing file is reported by the read that follows
                if not stat.S_ISREG(os.stat(self.full(path)).st_mode):
                    raise StoreError(f"cannot read {self.address(path)}: it is a folder or a device, not a file")

    def write(self, path: str, data: bytes) -> None:
        """Write an object atomically: a reader sees the old object or the new one, never a part.

        Raises:
            StoreError: if it cannot be written.
        """
        self._publish(path, lambda target: self.fs.pipe_file(target, data))

    def upload(self, path: str, file: Path) -> None:
        """Upload a local file atomically.

        Raises:
            StoreError: if it cannot be written.
        """
        self._publish(path, lambda target: self.fs.put_file(str(file), target))

    def take(self, path: str, file: Path) -> None:
        """Upload a local file atomically, and remove it. On the same file system as a local root it is renamed.

        Raises:
            StoreError: if it cannot be written.
        """
        if self.is_local:
            self._publish(path, lambda target: shutil.move(file, target))
        else:
            self.upload(path, file)
            file.unlink()

    def create(self, path: str, data: bytes) -> bool:
        """Create an object unless it exists. One of several concurrent callers succeeds.

        This needs the store's support: see ``supports_create``.

        Args:
            path: the object's path.
            data: content that is unique to this caller. If the store creates the object but fails to respond, the
                retry finds an object, and its content shows that this caller created it.

        Returns:
            Whether this call created the object.

        Raises:
            StoreError: if it cannot be written.
        """
        full = self.full(path)
        try:
            if self.is_local:
                self._link(full, data)
            else:
                self.fs.pipe_file(full, data, mode="create")
        except Exception as error:
            # s3fs raises FileExistsError only if the store's response names the condition.
            if not isinstance(error, FileExistsError) and error_code(error) not in REFUSED_CREATION:
                raise StoreError(f"cannot write {self.address(path)}: {explain(error)}") from error
            with suppress(FileNotFoundError):  # it was removed in the meantime
                return self.read(path) == data
            return False
        return True

    def supports_create(self) -> bool:
        """Whether the store supports ``create``; others overwrite an existing object. It is probed once per process.

        The probe does not detect stores that let two concurrent callers succeed.

        Raises:
            StoreError: if the root cannot be written.
        """
        return _supports_create(self)

    def age(self, path: str) -> float:
        """Seconds since an object was last written, by the store's clock. In S3, accurate to one second.

        The modification time of a new temporary object in the same folder is the present time.

        Raises:
            FileNotFoundError: if it does not exist.
            StoreError: if the folder cannot be read or written.
        """
        probe = posixpath.join(posixpath.dirname(self.full(path)), f".age-{uuid.uuid4().hex}.tmp")
        with (
            translate_store_errors(f"cannot determine the age of {self.address(path)}"),
            report_full_disk(self.path, ROOT_REMEDY),
        ):
            try:
                self.fs.pipe_file(probe, b"")
                now = self.fs.modified(probe)  # read first: an object that is rewritten in between must not look old
                seconds = (now - self.fs.modified(self.full(path))).total_seconds()
                return max(float(seconds), 0.0)
            finally:
                with suppress(FileNotFoundError):
                    self.fs.rm_file(probe)

    def _link(self, full: str, data: bytes) -> None:
        """Create a local file atomically, without replacing another."""
        folder, name = posixpath.split(full)
        unfinished = Path(folder, f".{name}.{uuid.uuid4().hex}.tmp")
        with report_full_disk(folder, ROOT_REMEDY):
            self.fs.makedirs(folder, exist_ok=True)
            try:
                unfinished.write_bytes(data)
                os.link(unfinished, full)
            finally:
                unfinished.unlink(missing_ok=True)

    def remove(self, path: str) -> None:
        """Remove an object, if it exists.

        Raises:
            StoreError: if it cannot be removed.
        """
        with translate_store_errors(f"cannot remove {self.address(path)}"), suppress(FileNotFoundError):
            self.fs.rm_file(self.full(path))

    def remove_all(self, paths: Sequence[str]) -> None:
        """Remove objects, those that exist, with as few requests as the store allows.

        Raises:
            StoreError: if one cannot be removed.
        """
        if self.is_local or len(paths) < 2:
            for path in paths:
                self.remove(path)
            return
        from caption_assets.store.s3 import delete_objects  # slow to import, as in ``Access``

        with translate_store_errors(f"cannot remove {len(paths)} objects below {self.address('')}"):
            delete_objects(self.fs, [self.full(path) for path in paths])

    def remove_folder(self, path: str) -> None:
        """Remove a folder and everything below it, if it exists.

        Raises:
            StoreError: if an object cannot be removed.
        """
        with translate_store_errors(f"cannot remove {self.address(path)}"), suppress(FileNotFoundError):
            if self.is_local:
                self.fs.rm(self.full(path), recursive=True)
            else:
                from caption_assets.store.s3 import delete_objects  # slow to import, as in ``Access``

                delete_objects(self.fs, self.fs.find(self.full(path)))

    def signed_url(self, path: str, seconds: float) -> str:
        """A presigned URL of an object, or the file URL of a local one. A presigned URL grants read access: a secret.

        Args:
            path: the object's path.
            seconds: lifetime of the URL.

        Raises:
            StoreError: if the object does not exist, or the store cannot sign.
        """
        if not self.exists(path):
            raise StoreError(f"{self.address(path)} does not exist: materialize the shard's captions first")
        if self.is_local:
            return Path(self.full(path)).absolute().as_uri()
        with translate_store_errors(f"cannot sign a URL of {self.address(path)}"):
            return str(self.fs.sign(self.full(path), expiration=round(seconds)))

    def names(self, path: str) -> list[str]:
        """The names directly below a folder, sorted; empty if there is no such folder.

        Raises:
            StoreError: if it cannot be listed.
        """
        return [name for name, _ in self._below(path)]

    def files(self, path: str) -> list[str]:
        """The names of the objects directly below a folder, sorted: ``names`` without folders and devices.

        Raises:
            StoreError: if it cannot be listed.
        """
        return [name for name, kind in self._below(path) if kind == "file"]

    def _below(self, path: str) -> Iterator[tuple[str, str]]:
        """Name and fsspec type of the entries directly below a folder, without temporary files."""
        with suppress(FileNotFoundError):
            for entry in self.entries(path):
                name = entry["name"].rstrip("/").rpartition("/")[2]
                if not _is_temporary(name):
                    yield name, entry["type"]

    def sizes(self, path: str) -> dict[str, int]:
        """Size in bytes of the objects below a folder, at any depth, by path; empty if there is no such folder.

        Temporary files are excluded.

        Raises:
            StoreError: if the folder cannot be listed.
        """
        return {name: int(entry["size"] or 0) for name, entry in self._tree(path)}

    def tags(self, path: str) -> dict[str, str]:
        """A tag of each object below a folder, at any depth, by path. It differs after the object was replaced.

        It is the store's ETag, or a local file's size, inode and time. One listing finds all of them.

        Raises:
            StoreError: if the folder cannot be listed.
        """
        return {name: _tag(entry) for name, entry in self._tree(path)}

    def _tree(self, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Path and fsspec entry of the objects below a folder, without temporary files."""
        base = self.full(path) + "/"
        with translate_store_errors(f"cannot list {self.address(path)}"):
            found = self.fs.find(base, detail=True)
        for entry in found.values():
            name = entry["name"].removeprefix(base)
            if not _is_temporary(name):
                yield posixpath.join(path, name), entry

    def move(self, path: str, target: str) -> None:
        """Move an object, and replace the target if it exists.

        A local file is renamed. In object storage the object is copied, and removed if the copy has the same size. A
        process that is killed in between leaves both objects; repeat the call.

        Raises:
            FileNotFoundError: if the object does not exist.
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
                raise StoreError(f"the sizes of {self.address(target)} and {self.address(path)} differ after the copy")
            self.fs.rm_file(old)

    def prune(self, path: str) -> None:
        """Remove the empty folders at and below ``path``. Object stores have no folders.

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
        except Exception as error:  # stores raise many types: OSError, botocore's, their clients'
            raise StoreError(f"cannot write {self.address(path)}: {explain(error)}") from error

    def _put(self, path: str, put: Callable[[str], object]) -> None:
        """Write an object atomically, as uploads to object stores are; a local file needs a rename."""
        full = self.full(path)
        if self.is_local:
            self._put_and_rename(full, put)
        else:
            put(full)

    def _put_and_rename(self, full: str, put: Callable[[str], object]) -> None:
        folder, name = posixpath.split(full)
        unfinished = posixpath.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")  # dataset readers skip dot files
        with report_full_disk(folder, ROOT_REMEDY):
            self.fs.makedirs(folder, exist_ok=True)
            try:
                put(unfinished)
                os.replace(unfinished, full)
            finally:
                Path(unfinished).unlink(missing_ok=True)

    def check_writable(self, setting: str) -> None:
        """Write and remove a probe object.

        Args:
            setting: the setting with this root's URL, for the message.

        Raises:
            StoreError: if that fails, or if the parent folder of a local root does not exist.
        """
        remedy = "choose a folder or a bucket's prefix that this user may write"
        if self.is_local and not Path(self.path).parent.is_dir():
            raise StoreError(f"{setting} is {self.url!r}, but {Path(self.path).parent} does not exist: {remedy}")
        probe = f"_probe-{uuid.uuid4().hex}"
        try:
            self._put(probe, lambda target: self.fs.pipe_file(target, b""))
            self.fs.rm_file(self.full(probe))
        except Exception as error:
            raise StoreError(
                f"{setting} is {self.url!r}, which is not writable ({explain(error)}): {remedy}"
            ) from error

    def entries(self, path: str = "") -> Iterator[dict[str, Any]]:
        """The entries directly below ``path``, sorted by name, each with fsspec's ``name``, ``size`` and ``type``.

        Raises:
            FileNotFoundError: if the folder does not exist.
            StoreError: if it cannot be listed.
        """
        with translate_store_errors(f"cannot list {self.address(path)}"):
            found = self.fs.ls(self.full(path), detail=True)
        yield from sorted(found, key=lambda entry: entry["name"])


def _is_temporary(name: str) -> bool:
    """Whether a name is that of a temporary file of ``_put_and_rename``, ``_link`` or ``age``."""
    name = posixpath.basename(name)
    return name.startswith(".") and name.endswith(".tmp")


def _tag(entry: Mapping[str, Any]) -> str:
    values = [entry.get("ETag")] if "ETag" in entry else [entry["size"], entry.get("ino"), entry.get("mtime")]
    return "-".join(map(str, values))


@cache  # a probe takes five requests
def _supports_create(root: Root) -> bool:
    probe = f"_probe-{uuid.uuid4().hex}"
    try:
        root.create(probe, b"first")
        return not root.create(probe, b"second")
    except StoreError as error:
        if not (error.__cause__ and is_refusal(error.__cause__)):
            raise
        root.write(probe, b"")  # raises if the store rejects unconditional writes as well
        return False
    finally:
        root.remove(probe)
