"""One clip of a shard: a range of bytes in storage, with a name."""

from __future__ import annotations

from dataclasses import dataclass

from fsspec import AbstractFileSystem


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
        return bytes(fs.cat_file(self.path, start=self.offset, end=self.offset + self.size))
