"""The bytes of a clip over HTTP, by ranges: a player reads what it shows, whether the clip is a file or in a tar."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from caption_assets.report.server import HEADERS
from caption_assets.sources.manifest import span_of
from caption_assets.store.content_tag import etag_tag
from caption_assets.store.root import Root
from caption_assets.store.span import Span
from caption_assets.store.tables import ManifestRow

PIECE_BYTES = 1 << 20
"""Size of a read from storage, in bytes. A player that has enough closes the connection between two of them."""
HEAD_BYTES = 16
"""Number of bytes at the front of a clip that show its container."""
_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))", re.ASCII)
_CONTAINERS = {
    "video/mp4": rb".{4}(?:ftyp|moov|mdat|wide|free|skip|styp)",
    "video/webm": rb"\x1aE\xdf\xa3",
    "video/ogg": rb"OggS",
    "video/x-msvideo": rb"RIFF.{4}AVI ",
    "video/x-flv": rb"FLV",
    "video/mpeg": rb"\0\0\x01[\xb3\xba]",
    "image/gif": rb"GIF8",
    "video/mp2t": rb"G|.{4}G",
}
"""Content types with the first bytes of their files. QuickTime files are sent as MP4, which has the same structure, and
Matroska files as WebM: browsers play both if they know the codec."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A range of the bytes of a clip."""

    start: int
    end: int
    """Excluded."""

    @classmethod
    def parse(cls, header: str | None, size: int) -> ByteRange | None:
        """Parse the header ``Range``; None if there is none, or one that a server ignores: several or other ranges.

        Raises:
            HTTPException: with status 416, if the range begins after the end.
        """
        found = _RANGE.fullmatch(header or "")
        if not found:
            return None
        first, last, suffix = found.groups()
        start = int(first) if first else max(size - int(suffix), 0)
        end = min(int(last) + 1, size) if last else size
        if first and last and int(last) < start:
            return None
        if start >= size or (suffix and not int(suffix)):
            raise HTTPException(416, headers={**HEADERS, "Content-Range": f"bytes */{size}"})
        return cls(start, end)


def clip_response(request: Request, source: Root, row: ManifestRow) -> Response:
    """The response to a request for the clip of a window.

    Args:
        request: a GET or HEAD.
        source: the folder of shards.
        row: the window.

    Raises:
        HTTPException: with status 404 if the clip is missing, 409 if it has changed, 416 for an impossible range.
        StoreError: if it cannot be read.
    """
    span = span_of(source, row)
    try:
        _check_unchanged(span, row)
        head = span.read_range(0, min(HEAD_BYTES, span.size))
    except FileNotFoundError:
        raise HTTPException(404, f"clip {row.clip_key} is not in the source any more", HEADERS) from None
    tag = f'"{row.content_tag}"'
    headers = {**HEADERS, "Accept-Ranges": "bytes", "Cache-Control": "private, max-age=3600", "ETag": tag}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    wanted = ByteRange.parse(request.headers.get("range"), span.size)
    if request.headers.get("if-range", tag) != tag:
        wanted = None
    sent = wanted or ByteRange(0, span.size)
    headers |= {"Content-Type": content_type(head), "Content-Length": str(sent.end - sent.start)}
    if wanted:
        headers["Content-Range"] = f"bytes {sent.start}-{sent.end - 1}/{span.size}"
    return _answer(request, span, sent, 206 if wanted else 200, headers)


def content_type(head: bytes) -> str:
    """The content type of a clip, from its first bytes."""
    found = (name for name, pattern in _CONTAINERS.items() if re.match(pattern, head, re.DOTALL))
    return next(found, "application/octet-stream")


def _check_unchanged(span: Span, row: ManifestRow) -> None:
    """Refuse a clip that was replaced. Stores without ETags show this by the size alone."""
    info = span.info()
    whole = span.offset == 0
    etag = info.get("ETag") if whole else None
    same_size = info["size"] == span.size if whole else info["size"] >= span.offset + span.size
    if not same_size or (etag and etag_tag(etag) != row.content_tag):
        message = f"clip {row.clip_key} has changed since clip_manifest was materialized: materialize it again"
        raise HTTPException(409, message, HEADERS)


def _answer(request: Request, span: Span, sent: ByteRange, status: int, headers: Mapping[str, str]) -> Response:
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    return StreamingResponse(_pieces(span, sent), status_code=status, headers=headers)


def _pieces(span: Span, sent: ByteRange) -> Iterator[bytes]:
    for start in range(sent.start, sent.end, PIECE_BYTES):
        yield span.read_range(start, min(start + PIECE_BYTES, sent.end))
