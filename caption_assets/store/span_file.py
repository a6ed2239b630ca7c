"""A clip's bytes as a file of which only the ranges that are asked for are fetched."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from caption_assets.errors import UnreadableClip
from caption_assets.store.content_tag import PiecewiseTag, etag_tag
from caption_assets.store.failure import StoreError
from caption_assets.store.span import END_BYTES, Span

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

READ_AHEAD = 4 << 20
"""Bytes in one request where a span is read from end to end: an answer's 20 ms are then little beside its transfer."""
HELD_BYTES = 32 << 20
"""Largest span that is kept in memory whole, where all of it has to be read for its tag: in each of eight workers."""


class SpanFile(io.RawIOBase):
    """A span as a binary file, read-only and seekable.

    What ``hold`` fetches is kept. Other bytes are fetched a few MiB at a time and let go when others are wanted, so
    that memory does not grow with the span; or, while the file is ``hollow``, not fetched at all: they read as zeros.

    Each use of the store raises ``UnreadableClip`` if it fails.
    """

    def __init__(self, span: Span) -> None:
        self.span = span
        self.hollow = False
        self.bytes_read = 0
        """Bytes fetched from the store so far."""
        self.requests = 0
        """How often the store was asked."""
        self._position = 0
        self._held: list[tuple[int, memoryview]] = []
        """Pieces that do not overlap, each with where it begins."""
        self._passing = (0, memoryview(b""))
        """The piece fetched last that is not held."""

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self.span.size

    def tag(self) -> str:
        """The span's content tag: of the store's own tag if it has one, else that of all of its bytes.

        A span of up to ``HELD_BYTES`` is held from then on: whoever reads it next fetches nothing.
        """
        if self.span.etag:
            return etag_tag(self.span.etag)
        tag = PiecewiseTag()
        if self.size <= HELD_BYTES:
            self.hold(0, self.size)
            for _, piece in self._pieces(0, self.size):
                tag.add(piece)
        else:
            for start in range(0, self.size, READ_AHEAD):
                tag.add(self._fetch(start, min(start + READ_AHEAD, self.size)))
        return tag.value()

    def ends(self) -> bytes:
        """The first and last 32 KiB; all of the span where these would overlap."""
        size = self.span.size
        if size <= 2 * END_BYTES:
            return self.read_range(0, size)
        return self.read_range(0, END_BYTES) + self.read_range(size - END_BYTES, size)

    def read_range(self, start: int, end: int) -> bytes:
        """The bytes from ``start`` to before ``end``, held from now on."""
        if start >= 0 and len(piece := self._piece(start)) >= end - start:  # mostly; an index has hundreds of fields
            return bytes(piece[: max(end - start, 0)])
        self.hold(start, end)
        return b"".join(piece[: end - place] for place, piece in self._pieces(start, end))

    def hold(self, start: int, end: int) -> None:
        """Fetch what is not yet held of the bytes from ``start`` to before ``end``, and keep it."""
        start, end = max(start, 0), min(end, self.span.size)
        while (start := self._gap(start, end)) < end:
            self._held.append((start, self._fetch(start, min(self._next_piece(start), end))))

    def holds(self, start: int, end: int) -> bool:
        """Whether all bytes from ``start`` to before ``end`` are held."""
        return self._gap(start, end) >= end

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Let the next read begin at ``offset``, counted as ``whence`` says."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.span.size}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill ``buffer`` as far as one piece goes, and return how far that is: 0 at the end."""
        view = memoryview(buffer).cast("B")
        data = self._next_bytes(len(view))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _next_bytes(self, most: int) -> memoryview:
        """At least one byte from the present position, unless that is the end, and at most ``most``."""
        start = self._position
        if start >= self.span.size:
            return memoryview(b"")
        if piece := self._piece(start):
            return piece[:most]
        until = self._next_piece(start)
        if self.hollow:
            return memoryview(bytes(min(most, until - start)))
        place, piece = self._passing
        if not place <= start < place + len(piece):
            place, piece = self._passing = (start, self._fetch(start, min(start + READ_AHEAD, until)))
        return piece[start - place :][:most]

    def _piece(self, start: int) -> memoryview:
        """What is held from ``start`` on, in one piece; may be nothing."""
        for place, data in self._held:
            if place <= start < place + len(data):
                return data[start - place :]
        return memoryview(b"")

    def _pieces(self, start: int, end: int) -> Iterator[tuple[int, memoryview]]:
        while start < end and (piece := self._piece(start)):
            yield start, piece
            start += len(piece)

    def _gap(self, start: int, end: int) -> int:
        """The first byte from ``start`` on that is not held; at or after ``end`` if all before that are."""
        for place, piece in self._pieces(start, end):
            start = place + len(piece)
        return start

    def _next_piece(self, start: int) -> int:
        """Where the next held piece after ``start`` begins, or the span ends."""
        return min((place for place, _ in self._held if place > start), default=self.span.size)

    def _fetch(self, start: int, end: int) -> memoryview:
        self.requests += 1
        try:
            data = self.span.read_range(start, end)
        except FileNotFoundError as error:
            raise UnreadableClip("unreadable", "the file cannot be read: it is gone since it was listed") from error
        except StoreError as error:
            raise UnreadableClip("unreadable", str(error)) from error
        self.bytes_read += len(data)
        if len(data) != end - start:
            raise UnreadableClip(
                "unreadable",
                f"the file gave {len(data)} bytes where {end - start} were asked for: it has changed since it was "
                "listed; materialize again",
            )
        return memoryview(data)
