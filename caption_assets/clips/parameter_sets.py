"""Whether a stream's decoder can begin at any of its key frames, or must be told first what an earlier packet says."""

from __future__ import annotations

import re
from collections.abc import Sequence

from av import Packet
from av.video.stream import VideoStream

_START = re.compile(rb"\x00\x00\x01(.)", re.DOTALL)
"""What each unit of a byte stream begins with, and the first byte of its header (ITU-T H.264 and H.265, annex B)."""
_KINDS = {"h264": (range(1, 6), range(7, 9)), "hevc": (range(32), range(32, 35))}
"""Types of units that are slices of a picture, and of those that are parameter sets (table 7-1 of both)."""


def are_at_hand(stream: VideoStream, packets: Sequence[Packet[VideoStream]]) -> bool:
    """Whether packets up to any key frame may be left out, for all that they say of how to decode what follows.

    Containers tell a stream's parameters at its beginning, or tell of a change with the packet where it takes place.
    Streams of H.264 and H.265 in transport and program streams have them before frames; mostly before each key frame,
    but it is enough that they come where they change.

    Args:
        stream: that the packets are of.
        packets: all of them, in file order.
    """
    if any(packet.has_sidedata("new_extradata") for packet in packets[1:]):
        return False
    context = stream.codec_context
    codec = context.codec.canonical_name
    if codec not in _KINDS or (context.extradata or b"\0")[0] == 1:  # told by the container: avcC, hvcC
        return True
    told = [(_sets(codec, packet), packet.is_keyframe) for packet in packets if packet.size]
    differ = len({sets for sets, _ in told if sets}) > 1
    return not differ or all(bool(sets) is is_keyframe for sets, is_keyframe in told)


def _sets(codec: str, packet: Packet[VideoStream]) -> tuple[bytes, ...]:
    """The parameter sets before a packet's first slice."""
    data = memoryview(packet)
    slices, parameters = _KINDS[codec]
    sets, begun = [], None
    for found in _START.finditer(data):
        if begun is not None:
            sets.append(bytes(data[begun : found.start()]).rstrip(b"\0"))
        kind = found[1][0] & 31 if codec == "h264" else found[1][0] >> 1 & 63
        if kind in slices:
            break
        begun = found.end() if kind in parameters else None
    return tuple(sets)
