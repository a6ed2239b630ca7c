"""Content tags: hashes that identify a clip's bytes wherever they are stored."""

from __future__ import annotations

from hashlib import sha256

import xxhash


class ContentTag:
    """Content tag of a clip whose store has no ETags: the 128-bit XXH3 hash of its bytes, as 32 hex digits.

    Copies of a clip have the same tag. The methods are those of ``hashlib``.

    Args:
        data: the first bytes.
    """

    def __init__(self, data: bytes = b"") -> None:
        self.size = len(data)
        """Number of bytes so far."""
        self._hash = xxhash.xxh3_128(data)

    def update(self, data: bytes | memoryview) -> None:
        """Add the next bytes."""
        self.size += len(data)
        self._hash.update(data)

    def hexdigest(self) -> str:
        """The tag of all bytes so far."""
        return self._hash.hexdigest()


def etag_tag(etag: str) -> str:
    """Content tag of an object with an ETag, as 32 hex digits."""
    return sha256(f"etag:{etag}".encode()).hexdigest()[:32]
