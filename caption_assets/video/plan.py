"""The packets of a clip that are decoded, and how thoroughly, to get some of its pictures."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from caption_assets.video.payload import Holds
from caption_assets.video.timeline import MISSING

SKIPPABLE = frozenset({"av1", "h264", "hevc", "mjpeg", "mpeg1video", "mpeg2video", "mpeg4", "prores", "vp8", "vp9"})
"""Codecs, by FFmpeg's names, whose keyframes are complete and whose decoders leave out nothing that is referred to.

Not so GIF, whose every frame counts as a keyframe and yet is painted over the one before it.
"""


@dataclass(frozen=True, slots=True)
class Structure:
    """The part of a clip's packets that a plan depends on."""

    packets: int
    """Number of packets."""
    keys: Sequence[int]
    """Numbers of the packets at which decoding can begin, ascending. The first packet is one in any case."""
    stamps: Sequence[int]
    """Presentation timestamp of each packet, or ``MISSING``."""
    holds: Sequence[int]
    """A ``Holds`` of each packet."""


def with_parts(clip: Structure, wanted: Collection[int]) -> set[int]:
    """The packets of some pictures: those that hold them, and those behind that hold none of their own.

    A picture's second field may lie in a packet of its own.

    Args:
        clip: its structure.
        wanted: numbers of the packets that hold the pictures.
    """
    found = set(wanted)
    for number in wanted:
        while (number := number + 1) < clip.packets and clip.holds[number] == Holds.NOTHING:
            found.add(number)
    return found


def runs(clip: Structure, wanted: Collection[int]) -> list[range]:
    """The packets to decode to get some of them, as ascending ranges that each begin at a keyframe.

    A group of pictures runs from one keyframe to the next. It is decoded from its keyframe to its last wanted packet;
    or to its end, if wanted pictures lead the next group: shown before that group's keyframe although decoded after it,
    they may refer to this group (open GOP).

    Args:
        clip: its structure.
        wanted: numbers of packets.
    """
    found: list[range] = []
    for number in sorted(wanted):
        group = bisect_right(clip.keys, number) - 1
        start = clip.keys[group] if group >= 0 else 0
        if MISSING < clip.stamps[number] < clip.stamps[start]:
            start = clip.keys[group - 1] if group > 0 else 0
        if found and start <= found[-1].stop:
            found[-1] = range(found[-1].start, number + 1)
        else:
            found.append(range(start, number + 1))
    return found
