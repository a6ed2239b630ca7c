"""The orientation stored in the supplemental enhancement information (SEI) of an H.264 or H.265 picture."""

from __future__ import annotations

from collections.abc import Iterator

from caption_assets.video.bits import Bits
from caption_assets.video.display import Orientation
from caption_assets.video.nal_units import length_size, unescaped, unit_type, units

CODECS = ("h264", "hevc")
SEI_UNITS = {"h264": 6, "hevc": 39}
"""Type of NAL units with SEI before a picture's slices (ITU-T H.264 and H.265, table 7-1)."""
SLICE_UNITS = {"h264": range(1, 6), "hevc": range(32)}
HEADER_BYTES = {"h264": 1, "hevc": 2}
DISPLAY_ORIENTATION = 47
"""Type of the display orientation message (annex D of both)."""


def read_orientation(codec: str, extradata: bytes, sample: bytes) -> Orientation | None:
    """The orientation of the picture in a sample; None if the SEI before its slices has none.

    Args:
        codec: one of ``CODECS``.
        extradata: the stream's extradata as FFmpeg provides it.
        sample: the picture's first bytes.
    """
    for unit in units(memoryview(sample), length_size(codec, extradata)):
        kind = unit_type(codec, unit)
        if kind in SLICE_UNITS[codec]:
            return None
        if kind != SEI_UNITS[codec]:
            continue
        for message, payload in _messages(unescaped(unit[HEADER_BYTES[codec] :])):
            if message == DISPLAY_ORIENTATION and len(payload) >= 3:
                return _orientation(payload)
    return None


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Types and payloads of the messages in a unit's data (7.3.2.3 of H.264)."""
    at = 0
    while at + 2 < len(data):
        numbers = []
        for _ in range(2):  # type and size of the message
            number = 0
            while at < len(data) and data[at] == 255:
                number, at = number + 255, at + 1
            if at == len(data):
                return
            numbers.append(number + data[at])
            at += 1
        kind, size = numbers
        yield kind, data[at : at + size]
        at += size


def _orientation(payload: bytes) -> Orientation | None:
    """The orientation of a message: flips, followed by a counter-clockwise rotation (D.1.27 of H.264)."""
    bits = Bits(payload)
    if bits.read(1):  # display_orientation_cancel_flag
        return None
    horizontal, vertical = bits.read(1), bits.read(1)
    turns = round(4 * bits.read(16) / 65536)
    return Orientation(90 * (turns + 2 * vertical) % 360, bool(horizontal ^ vertical))
