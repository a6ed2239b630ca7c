"""Parser of a Matroska or WebM file: properties of its video tracks that PyAV does not expose, and its length.

Elements and sections are those of RFC 9559 (Matroska), and their encoding is that of RFC 8794 (EBML).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from caption_assets.video.boxes import DOLBY_PROFILE
from caption_assets.video.track import ByteRanges, Crop, Track

EBML = b"\x1a\x45\xdf\xa3"
"""First bytes of a Matroska file (RFC 8794, 11.2.1)."""
SEGMENT_BYTES = 4096
"""Number of bytes at the front of a file that contain the header of its segment (5.1)."""
SEGMENT, CLUSTER, TRACKS, TRACK_ENTRY = 0x18538067, 0x1F43B675, 0x1654AE6B, 0xAE
TRACK_TYPE, VIDEO = 0x83, 0xE0
CROP_LEFT, CROP_TOP, CROP_RIGHT, CROP_BOTTOM = 0x54CC, 0x54BB, 0x54DD, 0x54AA
ENCODINGS, ENCODING, ENCRYPTION = 0x6D80, 0x6240, 0x5035
"""``ContentEncodings``, ``ContentEncoding`` and ``ContentEncryption`` (5.1.4.1.31)."""
MAPPING, MAPPING_TYPE, MAPPING_DATA = 0x41E4, 0x41E7, 0x41ED
"""``BlockAdditionMapping``, ``BlockAddIDType`` and ``BlockAddIDExtraData`` (5.1.4.1.17)."""
DOLBY_VISION = int.from_bytes(b"dvcC")
"""Type of a mapping that contains the box of that name."""
VIDEO_TRACK = 1
"""Value of ``TrackType`` (5.1.4.1.3)."""
MAX_ELEMENTS = 512
"""Maximum number of sibling elements to parse."""


@dataclass(frozen=True, slots=True)
class Element:
    """The position of an element in the file."""

    kind: int
    """Id, with the marker bits."""
    start: int
    """Offset of its contents."""
    end: int
    """Offset of its end."""


def read_tracks(file: ByteRanges) -> list[Track]:
    """The video tracks in file order; none if they are not stored before the first cluster."""
    for segment in _inside(file, Element(0, 0, file.size), SEGMENT):
        for element in _elements(file, segment):
            if element.kind == CLUSTER:
                break
            if element.kind == TRACKS:
                entries = _inside(file, element, TRACK_ENTRY)
                return [_track(file, entry) for entry in entries if _number(file, entry, TRACK_TYPE) == VIDEO_TRACK]
    return []


def is_complete(head: bytes, size: int) -> bool:
    """False if a Matroska file is cut off, so that its content is shorter than the length in its header.

    Args:
        head: the first ``SEGMENT_BYTES`` of the file.
        size: size of the file, in bytes.
    """
    at = head.find(SEGMENT.to_bytes(4)) + 4
    if not head.startswith(EBML) or at < 4 or at + 8 > len(head):
        return True
    length = _length(head[at : at + 1])
    limit = (1 << 7 * length) - 1
    value = int.from_bytes(head[at : at + length]) & limit
    return value == limit or at + length + value <= size


def _track(file: ByteRanges, entry: Element) -> Track:
    video = next(_inside(file, entry, VIDEO), Element(VIDEO, 0, 0))
    sides = (_number(file, video, side) for side in (CROP_LEFT, CROP_TOP, CROP_RIGHT, CROP_BOTTOM))
    encrypted = any(True for _ in _inside(file, entry, ENCODINGS, ENCODING, ENCRYPTION))
    proprietary_colors = None
    for mapping in _inside(file, entry, MAPPING):
        configurations = [
            file.read_range(at.start, min(at.start + 3, at.end)) for at in _inside(file, mapping, MAPPING_DATA)
        ]
        is_dolby = _number(file, mapping, MAPPING_TYPE) == DOLBY_VISION
        if is_dolby and any(len(data) == 3 and data[2] >> 1 == DOLBY_PROFILE for data in configurations):
            proprietary_colors = f"Dolby Vision profile {DOLBY_PROFILE}"
    return Track(
        Crop(*map(Fraction, sides)),
        encryption="Matroska" if encrypted else None,
        proprietary_colors=proprietary_colors,
    )


def _elements(file: ByteRanges, parent: Element) -> Iterator[Element]:
    """The children of an element, up to the first invalid one. The last may be truncated."""
    at = parent.start
    for _ in range(MAX_ELEMENTS):
        header = file.read_range(at, min(at + 12, parent.end))  # an id of at most 4 bytes, a size of at most 8
        kind_length = _length(header[:1])
        size_length = _length(header[kind_length : kind_length + 1])
        if not 0 < kind_length <= 4 or not size_length or len(header) < kind_length + size_length:
            return
        kind = int.from_bytes(header[:kind_length])
        limit = (1 << 7 * size_length) - 1
        size = int.from_bytes(header[kind_length : kind_length + size_length]) & limit
        start = at + kind_length + size_length
        at = parent.end if size == limit else start + size  # all bits set: unknown size
        yield Element(kind, start, min(at, parent.end))


def _length(first: bytes) -> int:
    """Length of a variable-size integer, from its first byte's leading zeros (RFC 8794, section 4); 0 if invalid."""
    return 9 - first[0].bit_length() if first and first[0] else 0


def _inside(file: ByteRanges, element: Element, *path: int) -> Iterator[Element]:
    """The descendants of an element at the end of a path of ids."""
    for child in _elements(file, element):
        if child.kind == path[0]:
            yield from _inside(file, child, *path[1:]) if path[1:] else (child,)


def _number(file: ByteRanges, parent: Element, kind: int) -> int:
    """The unsigned integer in a child element; 0 if there is none."""
    return next((int.from_bytes(file.read_range(at.start, at.end)[:8]) for at in _inside(file, parent, kind)), 0)
