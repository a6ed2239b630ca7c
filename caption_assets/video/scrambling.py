"""Detection of encrypted video in transport streams, program streams and Windows Media files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from uuid import UUID

from caption_assets.video.track import ByteRanges

HEAD_BYTES = 32 << 10
"""Number of bytes at the front of a file that are inspected."""
SYNC, PACKET_BYTES = 0x47, 188
"""Sync byte and packet size of an MPEG transport stream (ITU-T H.222.0, 2.4.3.2)."""
STRIDES = ((0, 188), (4, 192), (0, 204))
"""Offset of the first packet, and distance between packets: plain, with time codes (M2TS), with error correction."""
SCRAMBLED_SHARE = 0.25
"""Share of scrambled packets above which video counts as scrambled: discs leave about half of theirs clear."""
VIDEO_PES = re.compile(rb"\0\0\x01[\xe0-\xef]..(.)", re.DOTALL)
"""Header of a video packet in a program stream, with the byte that has its scrambling control (2.4.3.6)."""
ASF_PROTECTION = {
    UUID("2211b3fb-bd23-11d2-b4b7-00a0c955fc6e").bytes_le: "Windows Media DRM",
    UUID("298ae614-2622-4c17-b935-dae07ee9289c").bytes_le: "Windows Media DRM",
    UUID("9a04f079-9840-4286-ab92-e65be0885f95").bytes_le: "PlayReady",
}
"""Content encryption and extended content encryption objects (Advanced Systems Format Specification, 3.14 and 3.15),
and PlayReady's system id."""


def is_scrambled(file: ByteRanges, pid: int) -> bool:
    """Whether the video of a transport stream is scrambled.

    Args:
        file: the transport stream.
        pid: packet id of the video.
    """
    head = file.read_range(0, min(HEAD_BYTES, file.size))
    for start, stride in STRIDES:
        packets = [head[at : at + PACKET_BYTES] for at in range(start, len(head) - PACKET_BYTES + 1, stride)]
        if len(packets) > 1 and all(packet[0] == SYNC for packet in packets):
            return _are_scrambled([packet[3] >> 6 for packet in packets if int.from_bytes(packet[1:3]) & 0x1FFF == pid])
    return False


def is_scrambled_program(file: ByteRanges) -> bool:
    """Whether the video of a program stream is scrambled, as on a copy-protected DVD."""
    head = file.read_range(0, min(HEAD_BYTES, file.size))
    flags = [found[1][0] for found in VIDEO_PES.finditer(head)]
    return _are_scrambled([flag >> 4 & 3 for flag in flags if flag >> 6 == 0b10])  # others are MPEG-1


def _are_scrambled(controls: Sequence[int]) -> bool:
    """Whether enough packets are scrambled, by their scrambling control bits. A single packet may be damaged."""
    return sum(map(bool, controls)) > SCRAMBLED_SHARE * len(controls)


def asf_protection(file: ByteRanges) -> str | None:
    """Name of a Windows Media file's protection; None if it has none."""
    head = file.read_range(0, min(HEAD_BYTES, file.size))
    return next((name for guid, name in ASF_PROTECTION.items() if guid in head), None)
