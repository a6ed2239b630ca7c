"""Content tags: hashes that identify a clip's bytes wherever they are stored."""

from __future__ import annotations

from hashlib import sha256

import xxhash


class PiecewiseTag:
    """Incremental content tag: the 128-bit XXH3 hash as 32 hex digits.

    It covers every byte and nothing else: copies of a clip have the same tag.
    """

    def __init__(self) -> None:
        self.size = 0
        """Number of bytes so far."""
        self._hash = xxhash.xxh3_128()

    def add(self, piece: bytes | memoryview) -> None:
        """Update the tag with the next bytes."""
        self.size += len(piece)
        self._hash.update(piece)

    def value(self) -> str:
        """The tag of all bytes so far."""
        return self._hash.hexdigest()


def content_tag(data: bytes) -> str:
    """The content tag of a clip whose store has no ETags: ``PiecewiseTag`` of all of its bytes."""
    tag = PiecewiseTag()
    tag.add(data)
    return tag.value()


def etag_tag(etag: str) -> str:
    """The content tag of an object with an ETag, as 32 hex digits."""
    return sha256(f"etag:{etag}".encode()).hexdigest()[:32]
