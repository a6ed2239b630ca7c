"""Parser of the boxes of an MP4 or QuickTime file: its movie box, with track properties that PyAV does not expose.

Sections are those of ISO/IEC 14496-12:2022 unless another standard is named.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from caption_assets.video.display import Orientation, orientation
from caption_assets.video.track import NO_CROP, ByteRanges, Crop, Track

MAX_BOXES = 64
"""Maximum number of sibling boxes to parse: without fragments, the movie box is among the first few."""
VISUAL_ENTRY = 78
"""Bytes of a video sample entry before its child boxes (12.1.3)."""
ENCRYPTED = (b"encv", b"drmi")
"""Sample entries of encrypted video: common encryption (ISO/IEC 23001-7) and Apple's FairPlay."""
DOLBY_PROFILE = 5
"""Profile of Dolby Vision without a standard base layer (Dolby Vision Profiles and Levels, section 2)."""
MATTES = {0x101: 255, 0x102: 0}
"""Level of the matte in QuickTime's graphics modes "premul white alpha" and "premul black alpha" (QuickTime File Format
Specification, "Graphics modes")."""


@dataclass(frozen=True, slots=True)
class Box:
    """The position of a box in the file."""

    kind: bytes
    """Four-character code."""
    start: int
    """Offset of its contents."""
    end: int
    """Offset of its end."""


@dataclass(frozen=True, slots=True)
class MovieBox:
    """The content of a movie box (``moov``) that PyAV does not expose."""

    fragmented: bool
    """Whether the samples are listed in movie fragments throughout the file, and not here."""
    tracks: dict[int, Track]
    """Video tracks by id."""


def read_movie_box(file: ByteRanges) -> MovieBox | None:
    """Prefetch and parse the movie box of an MP4 or QuickTime file; None if there is none."""
    moov = next((box for box in _boxes(file, 0, file.size) if box.kind == b"moov"), None)
    if moov is None:
        return None
    file.prefetch(moov.start, moov.end)
    inside = list(_boxes(file, moov.start, moov.end))
    movie = next((_header(file, box).matrix for box in inside if box.kind == b"mvhd"), IDENTITY)
    tracks = [_track(file, box, movie) for box in inside if box.kind == b"trak"]
    return MovieBox(
        fragmented=any(box.kind == b"mvex" for box in inside),
        tracks=dict(found for found in tracks if found),
    )


def _boxes(file: ByteRanges, start: int, end: int) -> Iterator[Box]:
    """The boxes between two offsets, up to the first invalid one. The last may be truncated."""
    for _ in range(MAX_BOXES):
        if start + 8 > end:
            return
        header = file.read_range(start, min(start + 16, end))
        size, kind, contents = int.from_bytes(header[:4]), header[4:8], start + 8
        if size == 1:  # a 64-bit size follows
            size, contents = int.from_bytes(header[8:16]), start + 16
        elif size == 0:
            size = end - start
        if start + size < contents:
            return
        yield Box(kind, contents, min(start + size, end))
        start += size


def _inside(file: ByteRanges, box: Box, *path: bytes) -> Iterator[Box]:
    """The descendants of a box at the end of a path of kinds."""
    for child in _boxes(file, box.start, box.end):
        if child.kind == path[0]:
            yield from _inside(file, child, *path[1:]) if path[1:] else (child,)


Matrix = tuple[float, float, float, float]
"""a, b, c and d of a display matrix (6.2.2)."""
IDENTITY: Matrix = (1, 0, 0, 1)


@dataclass(frozen=True, slots=True)
class _Header:
    """The header of a track (``tkhd``) or of the movie (``mvhd``). The movie's ``track`` is meaningless."""

    track: int
    matrix: Matrix


def _header(file: ByteRanges, box: Box) -> _Header:
    """Parse a header (8.2.2 and 8.3.2). Truncated fields are zero."""
    data = file.read_range(box.start, min(box.start + 96, box.end)).ljust(96, b"\0")
    wide = 12 if data[0] == 1 else 0  # version 1 has three 64-bit fields before the matrix
    track = int.from_bytes(data[12 + wide * 2 // 3 :][:4])
    place = (40 if box.kind == b"tkhd" else 36) + wide
    a, b, _, c, d = struct.unpack(">5i", data[place : place + 20])
    return _Header(track, (a / 65536, b / 65536, c / 65536, d / 65536))


def _track(file: ByteRanges, trak: Box, movie: Matrix) -> tuple[int, Track] | None:
    """Id and properties of a video track; None for other tracks."""
    header = next((_header(file, box) for box in _inside(file, trak, b"tkhd")), None)
    handlers = [file.read_range(box.start + 8, box.start + 12) for box in _inside(file, trak, b"mdia", b"hdlr")]
    if header is None or b"vide" not in handlers:
        return None
    crop, encryption, drm, proprietary_colors = NO_CROP, None, False, None
    for table in _inside(file, trak, b"mdia", b"minf", b"stbl", b"stsd"):
        for entry in _boxes(file, table.start + 8, table.end):
            inside = Box(entry.kind, entry.start + VISUAL_ENTRY, entry.end)
            crop = next((_crop(file, entry, box) for box in _inside(file, inside, b"clap")), crop)
            if entry.kind in ENCRYPTED and _is_protected(file, inside):
                encryption, drm = _scheme(file, inside), entry.kind == b"drmi"
            profiles = [file.read_range(box.start + 2, box.start + 3) for box in _inside(file, inside, b"dvcC")]
            if any(data and data[0] >> 1 == DOLBY_PROFILE for data in profiles):
                proprietary_colors = f"Dolby Vision profile {DOLBY_PROFILE}"
    modes = [
        int.from_bytes(file.read_range(box.start + 4, box.start + 6))
        for box in _inside(file, trak, b"mdia", b"minf", b"vmhd")
    ]
    matte = next((MATTES[mode] for mode in modes if mode in MATTES), None)
    return header.track, Track(crop, _orientation(header.matrix, movie), encryption, drm, proprietary_colors, matte)


def _orientation(track: Matrix, movie: Matrix) -> Orientation:
    """The orientation of the track's matrix followed by the movie's."""
    a, b, c, d = track
    e, f, g, h = movie
    return orientation(a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h)


def _crop(file: ByteRanges, entry: Box, clap: Box) -> Crop:
    """The crop of a clean aperture (12.1.4), which states its size and the offset of its center from the picture's."""
    data = file.read_range(clap.start, min(clap.start + 32, clap.end)).ljust(32, b"\0")
    size = file.read_range(entry.start + 24, entry.start + 28).ljust(4, b"\0")
    width, height = struct.unpack(">HH", size)
    wide, wide_by, high, high_by, right, right_by, down, down_by = struct.unpack(">4IiIiI", data)
    if not (wide_by and high_by and right_by and down_by):
        return NO_CROP
    left = Fraction(width) / 2 - Fraction(wide, wide_by) / 2
    top = Fraction(height) / 2 - Fraction(high, high_by) / 2
    x, y = Fraction(right, right_by), Fraction(down, down_by)
    return Crop(left + x, top + y, left - x, top - y)


def _is_protected(file: ByteRanges, entry: Box) -> bool:
    """Whether samples are encrypted by default (``tenc``, ISO/IEC 23001-7, 8.2). True without that box."""
    flags = [file.read_range(box.start + 6, box.start + 7) for box in _inside(file, entry, b"sinf", b"schi", b"tenc")]
    return b"\0" not in flags


def _scheme(file: ByteRanges, entry: Box) -> str:
    """Name of the encryption scheme (``schm``, 8.12.6)."""
    schemes = [file.read_range(box.start + 4, box.start + 8) for box in _inside(file, entry, b"sinf", b"schm")]
    return schemes[0].decode("ascii", "replace").strip() if schemes else "unknown"
