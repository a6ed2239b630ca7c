"""A range of bytes in storage: a file of a shard, or a member of its tar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fsspec import AbstractFileSystem

from caption_assets.store.access import STANDARD, Access
from caption_assets.store.failure import translate_store_errors

END_BYTES = 32 << 10
"""Bytes at each end of a clip that are fetched first: a container's index or its first frames lie there."""


@dataclass(frozen=True, slots=True)
class Span:
    """A range of bytes in storage: a file of a shard, or a member of its tar."""

    url: str
    """The file that holds the bytes: its protocol, ``://``, and its path as the file system names it, unescaped."""
    offset: int
    """Where they begin in that file."""
    size: int
    """How many they are."""
    etag: str | None = None
    """The store's own tag of the content, where the bytes are a whole object of a store that has tags."""
    access: Access = STANDARD
    """How the storage is reached."""

    def info(self) -> dict[str, Any]:
        """What the store says of the file: fsspec's ``size`` and ``type``, and the ``ETag`` where it has one.

        Raises:
            FileNotFoundError: if there is none.
            StoreError: if the store does not say.
        """
        with translate_store_errors(f"{self.url} cannot be looked up"):
            fs, path = self._place()
            return dict(fs.info(path))

    def read(self) -> bytes:
        """The bytes.

        Raises:
            FileNotFoundError: if there is no such file.
            StoreError: if they cannot be read.
        """
        return self.read_range(0, self.size)

    def read_range(self, start: int, end: int) -> bytes:
        """The bytes from ``start`` to before ``end``, counted from the span's beginning.

        Raises:
            FileNotFoundError: if there is no such file.
            StoreError: if they cannot be read.
        """
        if end <= start:
            return b""  # a store would take an empty range for no range and send the whole file
        with translate_store_errors(f"{self.url} cannot be read"):
            fs, path = self._place()
            return bytes(fs.cat_file(path, start=self.offset + start, end=self.offset + end))

    def _place(self) -> tuple[AbstractFileSystem, str]:
        """The file system that holds the file, and its path there.

        Not by ``url_to_fs``, which takes ``::`` in a file's name for a chain of file systems.
        """
        protocol, path = self.url.split("://", 1)
        return self.access.filesystem(protocol), path
