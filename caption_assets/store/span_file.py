"""A clip in storage as a seekable file: only the ranges that are read are fetched."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from caption_assets.errors import UnreadableClip
from caption_assets.store.content_tag import ContentTag, etag_tag
from caption_assets.store.failure import StoreError
from caption_assets.store.span import END_BYTES, Span

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

READ_AHEAD = 4 << 20
"""Size of a request in a sequential read, in bytes: large enough that its latency, 20 ms, is a small part."""
MAX_CACHED_BYTES = 32 << 20
"""Maximum size of a span that is cached whole when it is read for its tag, in bytes. Eight workers cache one each."""


class SpanFile(io.RawIOBase):
    """A span as a binary file, read-only and seekable.

    Bytes that ``prefetch`` or ``read_range`` fetches are cached. Other bytes are fetched ``READ_AHEAD`` at a time and
    replaced by the next fetch, so that memory does not grow with the span. While ``zero_fill`` is set, they are not
    fetched at all and read as zeros.

    Methods that fetch bytes raise ``UnreadableClip`` if a request fails.
    """

    def __init__(self, span: Span) -> None:
        self.span = span
        self.zero_fill = False
        self.bytes_read = 0
        """Number of bytes fetched from the store so far."""
        self.requests = 0
        """Number of requests to the store so far."""
        self._position = 0
        self._cached: list[tuple[int, memoryview]] = []
        """Cached pieces that do not overlap, each with its offset."""
        self._last_fetched = (0, memoryview(b""))
        """The last fetched piece that is not cached, with its offset."""

    @property
    def size(self) -> int:
        """Size of the span, in bytes."""
        return self.span.size

    def tag(self) -> str:
        """The span's content tag: derived from the store's ETag if it has one, otherwise from all of its bytes.

        A span of up to ``MAX_CACHED_BYTES`` is cached when its bytes are read, so that later reads fetch nothing.
        """
        if self.span.etag:
            return etag_tag(self.span.etag)
        tag = ContentTag()
        if self.size <= MAX_CACHED_BYTES:
            self.prefetch(0, self.size)
            for _, piece in self._cached_pieces(0, self.size):
                tag.update(piece)
        else:
            for start in range(0, self.size, READ_AHEAD):
                tag.update(self._fetch(start, min(start + READ_AHEAD, self.size)))
        return tag.hexdigest()

    def prefetch_ends(self) -> None:
        """Fetch and cache the first and the last ``END_BYTES`` of the span: in one request if they overlap."""
        if self.size <= 2 * END_BYTES:
            self.prefetch(0, self.size)
        else:
            self.prefetch(0, END_BYTES)
            self.prefetch(self.size - END_BYTES, self.size)

    def read_range(self, start: int, end: int) -> bytes:
        """Read and cache the bytes from ``start`` to before ``end``."""
        # The usual case, kept fast: an index has hundreds of fields.
        if start >= 0 and len(piece := self._cached_from(start)) >= end - start:
            return bytes(piece[: max(end - start, 0)])
        self.prefetch(start, end)
        return b"".join(piece[: end - at] for at, piece in self._cached_pieces(start, end))

    def prefetch(self, start: int, end: int) -> None:
        """Fetch and cache those bytes from ``start`` to before ``end`` that are not cached yet."""
        start, end = max(start, 0), min(end, self.span.size)
        while (start := self._first_missing(start, end)) < end:
            self._cached.append((start, self._fetch(start, min(self._next_cached(start), end))))

    def is_cached(self, start: int, end: int) -> bool:
        """Whether all bytes from ``start`` to before ``end`` are cached."""
        return self._first_missing(start, end) >= end

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The position of the next read."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position of the next read, as ``io.IOBase.seek`` does."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.span.size}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Read at most the rest of one piece into ``buffer``, and return the number of bytes: 0 at the end."""
        view = memoryview(buffer).cast("B")
        data = self._next_bytes(len(view))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _next_bytes(self, size: int) -> memoryview:
        """At most ``size`` bytes from the current position, and at least one unless that is the end."""
        start = self._position
        if start >= self.span.size:
            return memoryview(b"")
        if piece := self._cached_from(start):
            return piece[:size]
        until = self._next_cached(start)
        if self.zero_fill:
            return memoryview(bytes(min(size, until - start)))
        at, piece = self._last_fetched
        if not at <= start < at + len(piece):
            at, piece = self._last_fetched = (start, self._fetch(start, min(start + READ_AHEAD, until)))
        return piece[start - at :][:size]

    def _cached_from(self, start: int) -> memoryview:
        """The rest of the cached piece that contains ``start``; empty if there is none."""
        for at, piece in self._cached:
            if at <= start < at + len(piece):
                return piece[start - at :]
        return memoryview(b"")

    def _cached_pieces(self, start: int, end: int) -> Iterator[tuple[int, memoryview]]:
        while start < end and (piece := self._cached_from(start)):
            yield start, piece
            start += len(piece)

    def _first_missing(self, start: int, end: int) -> int:
        """Offset of the first byte from ``start`` on that is not cached; at least ``end`` if all before ``end`` are."""
        for at, piece in self._cached_pieces(start, end):
            start = at + len(piece)
        return start

    def _next_cached(self, start: int) -> int:
        """Offset at which the next cached piece after ``start`` begins, or the span ends."""
        return min((at for at, _ in self._cached if at > start), default=self.span.size)

    def _fetch(self, start: int, end: int) -> memoryview:
        self.requests += 1
        try:
            data = self.span.read_range(start, end)
        except FileNotFoundError as error:
            raise UnreadableClip("unreadable", "the file was deleted after the shard was listed") from error
        except StoreError as error:
            raise UnreadableClip("unreadable", str(error)) from error
        self.bytes_read += len(data)
        if len(data) != end - start:
            raise UnreadableClip(
                "unreadable",
                f"the store returned {len(data)} of {end - start} requested bytes: the file changed after the shard "
                "was listed; materialize again",
            )
        return memoryview(data)
