"""NAL units of H.264 and H.265 packets, in byte streams and in MP4 samples."""

from __future__ import annotations

import re
from collections.abc import Iterator

_START = re.compile(rb"\x00\x00\x01")
"""The start code before each unit of a byte stream (ITU-T H.264 and H.265, annex B)."""
_UNESCAPED = re.compile(rb"\x00\x00(?=[\x00-\x03])")
"""Bytes before an emulation prevention byte."""
LENGTH_SIZE_AT = {"h264": 4, "hevc": 21}
"""Offset of the length fields' size in the decoder configuration record (ISO/IEC 14496-15, 5.3.3.1 and 8.3.3.1)."""


def length_size(codec: str, extradata: bytes | None) -> int | None:
    """Size of the length field before each unit, in bytes; None for a byte stream with start codes.

    Args:
        codec: ``h264`` or ``hevc``.
        extradata: the stream's extradata as FFmpeg provides it.
    """
    if not extradata or len(extradata) <= LENGTH_SIZE_AT[codec] or extradata[:3] in (b"\0\0\0", b"\0\0\1"):
        return None
    return (extradata[LENGTH_SIZE_AT[codec]] & 3) + 1


def units(data: memoryview, size: int | None) -> Iterator[memoryview]:
    """The units of a packet, each from its header on. The last may be followed by zero bytes.

    Args:
        data: the packet.
        size: size of the length fields, as ``length_size`` returns it.
    """
    return _with_start_codes(data) if size is None else _with_lengths(data, size)


def unit_type(codec: str, unit: memoryview) -> int:
    """The type of a unit (table 7-1 of both standards).

    Args:
        codec: ``h264`` or ``hevc``.
        unit: the unit.
    """
    return unit[0] & 31 if codec == "h264" else unit[0] >> 1 & 63


def unescaped(data: memoryview) -> bytes:
    """The data without emulation prevention bytes (section 7.4.1 of H.264)."""
    return bytes(data).replace(b"\0\0\3", b"\0\0")


def escaped(data: bytes) -> bytes:
    """The data with emulation prevention bytes (section 7.4.1 of H.264)."""
    return _UNESCAPED.sub(b"\0\0\3", data)


def unit_with_prefix(unit: bytes, size: int | None) -> bytes:
    """A unit as a packet contains it.

    Args:
        unit: the unit, from its header on.
        size: size of the length fields, as ``length_size`` returns it.
    """
    return b"\0\0\0\1" + unit if size is None else len(unit).to_bytes(size) + unit


def _with_start_codes(data: memoryview) -> Iterator[memoryview]:
    begun: int | None = None
    for found in _START.finditer(data):
        if begun is not None and found.start() > begun:
            yield data[begun : found.start()]
        begun = found.end()
    if begun is not None and begun < len(data):
        yield data[begun:]


def _with_lengths(data: memoryview, size: int) -> Iterator[memoryview]:
    at = 0
    while at + size < len(data):
        start = at + size
        at = start + int.from_bytes(data[at:start])
        if at > start:
            yield data[start:at]
