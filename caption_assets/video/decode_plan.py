"""The decode plan: the ranges of packets to decode to get the wanted pictures of a clip."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from caption_assets.video.payload import PacketContent
from caption_assets.video.references import References
from caption_assets.video.timeline import MISSING

SKIPPABLE_CODECS = frozenset(
    {"av1", "h264", "hevc", "mjpeg", "mpeg1video", "mpeg2video", "mpeg4", "prores", "vp8", "vp9"}
)
"""Codecs, by FFmpeg's names, whose keyframes are complete and whose decoders skip only non-reference pictures.

GIF is not one: all its frames count as keyframes, yet each is painted over the one before it.
"""


@dataclass(frozen=True, slots=True)
class StreamStructure:
    """The properties of a stream's packets that decide a decode plan."""

    packets: int
    """Number of packets."""
    keyframes: Sequence[int]
    """Numbers of the packets at which decoding can begin, ascending. Decoding can begin at packet 0 in any case."""
    timestamps: Sequence[int]
    """Presentation timestamp of each packet, or ``MISSING``."""
    contents: Sequence[int]
    """``PacketContent`` of each packet."""
    references: References | None = None
    """The reference pictures of each picture; None if they are not certain."""


def with_second_fields(stream: StreamStructure, wanted: Collection[int]) -> set[int]:
    """The wanted packets and the packets without a picture that follow each of them.

    The second field of a picture may lie in a packet of its own.

    Args:
        stream: structure of the stream.
        wanted: numbers of the packets with the pictures.
    """
    found = set(wanted)
    for number in wanted:
        while (number := number + 1) < stream.packets and stream.contents[number] == PacketContent.NO_PICTURE:
            found.add(number)
    return found


def decode_ranges(stream: StreamStructure, wanted: Collection[int]) -> list[range]:
    """The packets to decode to get the wanted ones, as ascending ranges that each begin at a keyframe.

    A group of pictures extends from one keyframe to the next. It is decoded from its keyframe to its last wanted
    packet. A wanted picture may lead the next group (open GOP): it is shown before that group's keyframe although
    decoded after it, and may be predicted from the previous group. The previous group is then decoded to its end.

    Args:
        stream: structure of the stream.
        wanted: numbers of packets.
    """
    found: list[range] = []
    for number in sorted(wanted):
        group = bisect_right(stream.keyframes, number) - 1
        start = stream.keyframes[group] if group >= 0 else 0
        if MISSING < stream.timestamps[number] < stream.timestamps[start]:
            start = stream.keyframes[group - 1] if group > 0 else 0
        while found and start <= found[-1].stop:
            start = min(start, found.pop().start)
        found.append(range(start, number + 1))
    return found


def needed_packets(references: Sequence[Sequence[int]], planned: range, wanted: Collection[int]) -> set[int]:
    """The packets of a range that must be decoded: the wanted ones and those that they are predicted from.

    Args:
        references: see ``References.packets``.
        planned: a range that begins at a keyframe.
        wanted: numbers of packets.
    """
    needed = {planned.start}
    for number in reversed(planned):
        if number in wanted or number in needed:
            needed.add(number)
            needed.update(references[number])
    return needed
