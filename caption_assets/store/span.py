"""A range of bytes in storage: a file of a shard, or a member of its tar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fsspec import AbstractFileSystem

from caption_assets.store.access import STANDARD, Access
from caption_assets.store.failure import translate_store_errors

END_BYTES = 32 << 10
"""Size of each end of a clip that is fetched first, in bytes: it contains the container's index or its first frames."""


@dataclass(frozen=True, slots=True)
class Span:
    """A range of bytes in storage: a file of a shard, or a member of its tar."""

    url: str
    """URL of the file that contains the bytes: protocol, ``://``, and its path in the file system, unescaped."""
    offset: int
    """Offset of the first byte in that file."""
    size: int
    """Number of bytes."""
    etag: str | None = None
    """The store's ETag, if the span is a whole object of a store with ETags."""
    access: Access = STANDARD
    """Access options of the storage."""

    def info(self) -> dict[str, Any]:
        """Metadata of the file: fsspec's ``size`` and ``type``, and the ``ETag`` if the store has one.

        Raises:
            FileNotFoundError: if there is no such file.
            StoreError: if the request fails.
        """
        with translate_store_errors(f"{self.url} cannot be looked up"):
            fs, path = self._resolve()
            return dict(fs.info(path))

    def read(self) -> bytes:
        """The bytes.

        Raises:
            FileNotFoundError: if there is no such file.
            StoreError: if the request fails.
        """
        return self.read_range(0, self.size)

    def read_range(self, start: int, end: int) -> bytes:
        """The bytes from ``start`` to before ``end``, counted from the span's beginning.

        Raises:
            FileNotFoundError: if there is no such file.
            StoreError: if the request fails.
        """
        if end <= start:
            return b""  # a store would treat an empty range as none and send the whole file
        with translate_store_errors(f"{self.url} cannot be read"):
            fs, path = self._resolve()
            return bytes(fs.cat_file(path, start=self.offset + start, end=self.offset + end))

    def _resolve(self) -> tuple[AbstractFileSystem, str]:
        """The file system of the file, and its path there.

        fsspec's ``url_to_fs`` is not used: it parses ``::`` in a file name as a chain of file systems.
        """
        protocol, path = self.url.split("://", 1)
        if protocol in ("http", "https"):  # fsspec's paths of these are URLs
            path = self.url
        return self.access.filesystem(protocol), path
