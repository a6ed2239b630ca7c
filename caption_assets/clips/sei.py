"""Supplemental enhancement information (SEI) of H.264 and H.265 pictures, as far as it turns them."""

from __future__ import annotations

from collections.abc import Iterator

SEI_UNITS = {"h264": 6, "hevc": 39}
"""Type of the units that hold SEI before a picture's slices (ITU-T H.264 and H.265, table 7-1)."""
SLICE_UNITS = {"h264": range(1, 6), "hevc": range(32)}
DISPLAY_ORIENTATION = 47
"""Type of the message that turns or mirrors pictures (annex D of both)."""


def has_orientation(codec: str, extradata: bytes, sample: bytes) -> bool:
    """Whether the SEI before a picture's slices orients it.

    Args:
        codec: ``h264`` or ``hevc``.
        extradata: the container's header of the stream (``avcC`` or ``hvcC``, ISO/IEC 14496-15).
        sample: the picture's first bytes.
    """
    if (len(extradata) < 23 and codec == "hevc") or len(extradata) < 5:
        return False
    length_bytes = (extradata[21 if codec == "hevc" else 4] & 3) + 1
    header = 2 if codec == "hevc" else 1
    for unit in _units(sample, length_bytes):
        kind = unit[0] >> 1 & 63 if codec == "hevc" else unit[0] & 31
        if kind in SLICE_UNITS[codec]:
            return False
        if kind == SEI_UNITS[codec] and DISPLAY_ORIENTATION in _messages(unit[header:]):
            return True
    return False


def _units(sample: bytes, length_bytes: int) -> Iterator[bytes]:
    """The units of a sample, each after its length; the last may be cut off."""
    at = 0
    while at + length_bytes < len(sample):
        start = at + length_bytes
        at = start + int.from_bytes(sample[at:start])
        if at > start:
            yield sample[start:at]


def _messages(payload: bytes) -> Iterator[int]:
    """Types of the messages of a unit (7.3.2.3 of H.264)."""
    data = payload.replace(b"\0\0\3", b"\0\0")  # the 3 keeps start codes out
    at = 0
    while at + 2 < len(data):
        numbers = []
        for _ in range(2):  # its type, its size
            number = 0
            while at < len(data) and data[at] == 255:
                number, at = number + 255, at + 1
            if at == len(data):
                return
            numbers.append(number + data[at])
            at += 1
        yield numbers[0]
        at += numbers[1]
