"""Content tags: hashes that identify a clip's bytes wherever they are stored."""

from __future__ import annotations

from hashlib import sha256

import xxhash


class PiecewiseTag:
    """The content tag of bytes that come in pieces: XXH3's 128 bits as 32 hex digits.

    It covers every byte, and nothing else: a clip keeps its tag wherever it lies and whoever copied it.
    """

    def __init__(self) -> None:
        self.size = 0
        """Bytes so far."""
        self._hash = xxhash.xxh3_128()

    def add(self, piece: bytes | memoryview) -> None:
        """Take the next bytes into account."""
        self.size += len(piece)
        self._hash.update(piece)

    def value(self) -> str:
        """The tag of all bytes so far."""
        return self._hash.hexdigest()


def content_tag(data: bytes) -> str:
    """The content tag of a clip whose store has none: ``PiecewiseTag`` of all of its bytes."""
    tag = PiecewiseTag()
    tag.add(data)
    return tag.value()


def etag_tag(etag: str) -> str:
    """The content tag of an object that its store has tagged itself: 32 hex digits, too."""
    return sha256(f"etag:{etag}".encode()).hexdigest()[:32]
