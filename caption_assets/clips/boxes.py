"""The boxes of an MP4 or QuickTime file: where its index lies, and what of it FFmpeg would tell only with a frame."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from caption_assets.clips.reader import SpanFile

MOST_BOXES = 64
"""Boxes side by side that are looked at: in a file that is not fragmented the index is among the first few."""


@dataclass(frozen=True, slots=True)
class Box:
    """One box by its place in the file."""

    kind: bytes
    """Its four letters."""
    start: int
    """First byte of its contents."""
    end: int
    """One past its last byte."""


@dataclass(frozen=True, slots=True)
class Index:
    """What an index (``moov``) says beside what FFmpeg reads out of it."""

    fragmented: bool
    """Whether the frames are listed in fragments all over the file, and not here."""
    rotations: dict[int, int]
    """By track id: degrees counter-clockwise by which its pictures are to be turned, 0, 90, 180 or 270."""


def read_index(file: SpanFile) -> Index | None:
    """The index of an MP4 or QuickTime file, held from now on; None if there is none where one looks for it."""
    moov = next((box for box in _boxes(file, 0, file.span.size) if box.kind == b"moov"), None)
    if moov is None:
        return None
    file.hold(moov.start, moov.end)
    inside = list(_boxes(file, moov.start, moov.end))
    tracks = [child for box in inside if box.kind == b"trak" for child in _boxes(file, box.start, box.end)]
    whole = sum(_header(file, box).rotation for box in inside if box.kind == b"mvhd")
    headers = [_header(file, box) for box in tracks if box.kind == b"tkhd"]
    return Index(
        fragmented=any(box.kind == b"mvex" for box in inside),
        rotations={header.track: (header.rotation + whole) % 360 for header in headers},
    )


def _boxes(file: SpanFile, start: int, end: int) -> Iterator[Box]:
    """The boxes between two places, up to the first that is none; the last may be cut off by the end."""
    for _ in range(MOST_BOXES):
        if start + 8 > end:
            return
        header = file.read_range(start, min(start + 16, end))
        size, kind, contents = int.from_bytes(header[:4]), header[4:8], start + 8
        if size == 1:  # a longer number follows
            size, contents = int.from_bytes(header[8:16]), start + 16
        elif size == 0:
            size = end - start
        if start + size < contents:
            return
        yield Box(kind, contents, min(start + size, end))
        start += size


@dataclass(frozen=True, slots=True)
class _Header:
    """Of a track (``tkhd``), or of the whole film (``mvhd``), whose "track" means nothing."""

    track: int
    rotation: int


def _header(file: SpanFile, box: Box) -> _Header:
    """Read by ISO/IEC 14496-12, 8.2.2 and 8.3.2; zeros where it is cut off."""
    data = file.read_range(box.start, min(box.start + 96, box.end)).ljust(96, b"\0")
    wide = 12 if data[0] == 1 else 0  # version 1 has three longer numbers before the matrix
    track = int.from_bytes(data[12 + wide * 2 // 3 :][:4])
    place = (40 if box.kind == b"tkhd" else 36) + wide
    a, b, _, c, d = struct.unpack(">5i", data[place : place + 20])
    # As FFmpeg's av_display_rotation_get, which is by what a decoded frame is to be turned.
    width, height = math.hypot(a, c), math.hypot(b, d)
    angle = math.degrees(math.atan2(b / height, a / width)) if width and height else 0.0
    return _Header(track, -round(angle / 90) * 90 % 360)
