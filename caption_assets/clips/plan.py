"""Which of a clip's packets to decode, and how thoroughly, to get some of its frames."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum, auto

SKIPPABLE = frozenset({"av1", "h264", "hevc", "mjpeg", "mpeg1video", "mpeg2video", "mpeg4", "prores", "vp8", "vp9"})
"""Codecs, by FFmpeg's names, whose key frames are complete and whose decoders leave out nothing that is referred to.

Not so GIF, say, whose every frame counts as a key frame and yet is painted over the one before it.
"""


class Step(Enum):
    """What becomes of a packet."""

    DECODE = auto()
    """It is decoded: its frame is wanted."""
    REFER = auto()
    """It is decoded if the decoder finds that other frames are predicted from it."""
    SKIP = auto()
    """It is kept from the decoder, which does not miss it: no other frame is predicted from it."""
    DROP = auto()
    """It is kept from the decoder, which begins anew after it."""


@dataclass(frozen=True, slots=True)
class PacketFacts:
    """What the plan needs to know of a packet, in decoding order."""

    pts: int | None
    """When its frame is shown, in the stream's time base."""
    is_keyframe: bool
    """Whether decoding can begin here: as the file says."""
    is_referred: bool = True
    """False if no other frame is predicted from its; True as well where only the decoder can tell."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do with a clip's packets."""

    steps: tuple[Step, ...]
    """One for each packet."""
    entries: frozenset[int]
    """Stamps of the key frames at which decoding begins anew, packets before them having been dropped."""


def whole_plan(packets: Sequence[PacketFacts], wanted: Collection[int]) -> Plan:
    """Everything from the first packet to the last wanted one."""
    last = max((index for index, packet in enumerate(packets) if packet.pts in wanted), default=-1)
    steps: list[Step] = [Step.DECODE if index <= last else Step.DROP for index in range(len(packets))]
    return Plan(tuple(steps), frozenset())


def lean_plan(packets: Sequence[PacketFacts], wanted: Collection[int]) -> Plan:
    """The least that yields the same frames as decoding everything, for a codec that is ``SKIPPABLE``.

    A group of pictures runs from one key frame to the next. It is decoded from its key frame to its last wanted packet;
    or to its end, if wanted pictures lead the next group: shown before that group's key frame although decoded after
    it, they may refer to this group (open GOP).

    Args:
        packets: all of the clip's, in decoding order.
        wanted: stamps of the frames to get.
    """
    steps: list[Step] = [Step.DROP] * len(packets)
    entries = set()
    groups = _groups(packets)
    for number, group in enumerate(groups):
        after = groups[number + 1] if number + 1 < len(groups) else range(0)
        stop = group.stop if _has_wanted_leader(packets, after, wanted) else _end_of_wanted(packets, group, wanted)
        for index in range(group.start, stop):
            steps[index] = _step(packets[index], is_head=index == group.start, wanted=wanted)
        pts = packets[group.start].pts
        if stop > group.start > 0 and steps[group.start - 1] is Step.DROP and pts is not None:
            entries.add(pts)
    return Plan(tuple(steps), frozenset(entries))


def _step(packet: PacketFacts, *, is_head: bool, wanted: Collection[int]) -> Step:
    """What becomes of a packet of a group that is decoded."""
    if is_head or packet.pts in wanted:
        return Step.DECODE
    return Step.REFER if packet.is_referred else Step.SKIP


def _groups(packets: Sequence[PacketFacts]) -> list[range]:
    """Ranges of packets, each from a key frame to before the next; the first is from the clip's beginning, anyhow."""
    starts = sorted({0, *(index for index, packet in enumerate(packets) if packet.is_keyframe)})
    return [range(start, end) for start, end in zip(starts, [*starts[1:], len(packets)], strict=True)]


def _has_wanted_leader(packets: Sequence[PacketFacts], group: range, wanted: Collection[int]) -> bool:
    head = packets[group.start].pts if group else None
    stamps = (packets[index].pts for index in group)
    return head is not None and any(pts is not None and pts < head and pts in wanted for pts in stamps)


def _end_of_wanted(packets: Sequence[PacketFacts], group: range, wanted: Collection[int]) -> int:
    """One past the group's last wanted packet; its start if there is none."""
    return max((index + 1 for index in group if packets[index].pts in wanted), default=group.start)
