"""Parameter sets in a stream's packets, which decide whether decoding can begin at any keyframe."""

from __future__ import annotations

from collections.abc import Iterator

from av import Packet
from av.video.stream import VideoStream

from caption_assets.video.nal_units import length_size, unit_type, units

_KINDS = {"h264": (range(1, 6), range(7, 9)), "hevc": (range(32), range(32, 35))}
"""Types of NAL units that are slices, and of those that are parameter sets (table 7-1 of both)."""


class ParameterSetReader:
    """Detects parameter sets that change within a stream.

    Containers store a stream's parameters in their header, or with the packet at which they change. H.264 and H.265
    streams may contain them as well (transport streams, avc3 and hev1 in MP4): usually before each keyframe, but
    sometimes only where they change.
    """

    def __init__(self, stream: VideoStream) -> None:
        context = stream.codec_context
        self._codec = context.codec.canonical_name
        self._lengths = length_size(self._codec, context.extradata) if self._codec in _KINDS else None
        self._packets = 0
        self._seen = set(configured_sets(self._codec, context.extradata or b"")) if self._lengths else set()
        self._differ = False
        self._only_at_keyframes = True
        self._changes = False

    def add(self, packet: Packet[VideoStream], *, is_keyframe: bool) -> None:
        """Parse the next packet, in file order."""
        if self._packets and packet.has_sidedata("new_extradata"):
            self._changes = True
        self._packets += 1
        if self._codec not in _KINDS or self._changes:
            return
        sets = self._sets(packet)
        if self._seen and not self._seen.issuperset(sets):
            self._differ = True
        self._seen.update(sets)
        self._only_at_keyframes = self._only_at_keyframes and bool(sets) is is_keyframe
        self._changes = self._differ and not self._only_at_keyframes

    @property
    def can_start_at_any_keyframe(self) -> bool:
        """Whether no packet before a keyframe is needed for its parameter sets."""
        return not self._changes

    def _sets(self, packet: Packet[VideoStream]) -> tuple[bytes, ...]:
        """The parameter sets before a packet's first slice."""
        slices, parameters = _KINDS[self._codec]
        sets = []
        for unit in units(memoryview(packet), self._lengths):
            kind = unit_type(self._codec, unit)
            if kind in slices:
                break
            if kind in parameters:
                sets.append(bytes(unit).rstrip(b"\0"))
        return tuple(sets)


def configured_sets(codec: str, record: bytes) -> Iterator[bytes]:
    """The parameter sets of a decoder configuration record (ISO/IEC 14496-15, 5.3.3.1 and 8.3.3.1)."""
    if codec == "h264":
        at, groups = 5, 2
    else:
        at, groups = 23, record[22] if len(record) > 22 else 0
    for group in range(groups):
        if codec == "h264":
            count, at = (record[at] if at < len(record) else 0) & (31 if group == 0 else 255), at + 1
        else:
            count, at = int.from_bytes(record[at + 1 : at + 3]), at + 3
        for _ in range(count):
            size = int.from_bytes(record[at : at + 2])
            yield record[at + 2 : at + 2 + size]
            at += 2 + size
