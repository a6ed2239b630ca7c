"""One clip of a shard: a range of bytes in storage, with a name."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from fsspec import AbstractFileSystem


def content_tag(data: bytes) -> str:
    """The tag that tells a clip's content from another's: 32 hex digits of the SHA-256 of its bytes."""
    return sha256(data).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Clip:
    """A video file of a shard, wherever its bytes lie."""

    key: str
    """Name of the clip, relative to its shard, with forward slashes. Unique within the shard."""
    path: str
    """The file that holds the bytes, as the file system names it: the clip itself or the tar it is a member of."""
    offset: int
    """Where the clip begins in that file, in bytes."""
    size: int
    """Length of the clip in bytes."""

    def read(self, fs: AbstractFileSystem) -> bytes:
        """The clip's bytes."""
        if self.size == 0:
            return b""  # a store would take an empty range for no range and send the whole file
        return bytes(fs.cat_file(self.path, start=self.offset, end=self.offset + self.size))
