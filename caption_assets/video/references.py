"""The reference pictures of each picture of an H.264 stream, parsed from slice headers.

FFmpeg can skip the pictures that are marked as unused for reference. Streams have more that can be skipped: encoders
mark the middle one of several B pictures as a reference, and often only its neighbors are predicted from it. Such a
picture is replaced by an empty one with the same header, so that the decoder's buffer stays that of the stream.

Sections and names are those of ITU-T H.264 (08/2021).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from av import Packet
from av.video.stream import VideoStream

from caption_assets.video import h264
from caption_assets.video.h264_references import B_SLICE, P_SLICE, ReferenceParser, SliceReferences
from caption_assets.video.nal_units import length_size, unit_type, unit_with_prefix, units
from caption_assets.video.parameter_sets import configured_sets

TRIAL_PACKETS = 64
"""Number of packets after which parsing stops if none of their reference pictures can be skipped."""

MAX_REFERENCES = 16
"""Maximum of ``max_num_ref_frames`` (section A.3.1)."""


class _Unsupported(ValueError):
    """Raised if the reference pictures of a stream are not certain."""


@dataclass(frozen=True, slots=True)
class References:
    """The reference pictures of a stream."""

    packets: Sequence[Sequence[int]]
    """For each packet, the numbers of the packets that its picture may be predicted from."""
    parser: ReferenceParser
    length_size: int | None
    """See ``nal_units.length_size``."""

    def empty(self, packet: Packet[VideoStream]) -> Packet[VideoStream] | None:
        """The packet to decode in place of one whose picture is skipped.

        Returns:
            A packet with an empty picture for a B picture that is marked as a reference; None for a picture that is
            not: no packet need be decoded. For other pictures, the packet itself.
        """
        for unit in units(memoryview(packet), self.length_size):
            if unit_type("h264", unit) not in h264.SLICES:
                continue
            if not h264.is_reference(unit):
                return None
            if self.parser.read(unit).kind != B_SLICE:
                return packet
            empty = Packet(unit_with_prefix(self.parser.empty(unit), self.length_size))
            empty.pts = packet.pts
            return cast("Packet[VideoStream]", empty)
        return packet


@dataclass(frozen=True, slots=True, eq=False)
class _Picture:
    """A reference picture in the buffer."""

    number: int
    """Number of its packet."""
    frame_num: int
    order: int
    """``PicOrderCnt``."""


class ReferenceReader:
    """Determines the pictures that each picture of a stream may be predicted from.

    It models the decoded picture buffer (sections 8.2.4 and 8.2.5) of H.264 streams of frames with the same slices,
    one sequence parameter set, without long-term references and lost pictures, whose keyframes are IDR pictures. It
    does not support other streams.
    """

    def __init__(self, stream: VideoStream) -> None:
        context = stream.codec_context
        self._is_supported = context.codec.canonical_name == "h264"
        self._packets: list[tuple[int, ...]] = []
        self._layout: tuple[int, ...] = ()
        self._anchors: set[int] = set()
        self._buffer: list[_Picture] = []
        self._last: _Picture | None = None
        self._sets: set[bytes] = set()
        self._pictures: dict[int, h264.PictureParameters] = {}
        self._sequence: h264.SequenceParameters | None = None
        extradata = context.extradata or b""
        self._lengths = length_size("h264", extradata) if self._is_supported else None
        try:
            for unit in configured_sets("h264", extradata) if self._lengths else ():
                self._add_set(memoryview(unit))
        except (ValueError, IndexError):
            self._is_supported = False

    @property
    def references(self) -> References | None:
        """The reference pictures of the packets so far; None if they are not certain."""
        if not self._is_supported or self._sequence is None:
            return None
        return References(self._packets, ReferenceParser(self._sequence, self._pictures), self._lengths)

    def add(self, packet: Packet[VideoStream]) -> None:
        """Parse the next packet, in file order."""
        if not self._is_supported:
            return
        try:
            if packet.has_sidedata("new_extradata"):
                raise _Unsupported("parameter sets change")
            self._add(memoryview(packet), is_keyframe=packet.is_keyframe)
            if len(self._packets) == TRIAL_PACKETS and self._needs_all():
                raise _Unsupported("no picture can be skipped")
        except (ValueError, IndexError, KeyError):
            self._is_supported = False
            self._packets.clear()

    def _needs_all(self) -> bool:
        """Whether the pictures other than B pictures need all reference pictures of the first half so far."""
        needed = set(self._anchors)
        for number in reversed(range(len(self._packets))):
            if number in needed:
                needed.update(self._packets[number])
        half = len(self._packets) // 2
        return all(used in needed for used in itertools.chain.from_iterable(self._packets) if used < half)

    def _add(self, data: memoryview, *, is_keyframe: bool) -> None:
        slices = []
        for unit in units(data, self._lengths):
            kind = unit_type("h264", unit)
            if kind in (h264.SEQUENCE_PARAMETERS, h264.PICTURE_PARAMETERS):
                self._add_set(unit)
            elif kind in h264.SLICES:
                slices.append(unit)
        if not slices or self._sequence is None:
            raise _Unsupported("packet without a picture or parameters")
        parser = ReferenceParser(self._sequence, self._pictures)
        parts = [parser.read(unit) for unit in slices]
        layout = tuple(each.first_macroblock for each in parts)
        self._layout = self._layout or layout
        if layout != self._layout or len({(each.kind, each.frame_num, each.order_lsb) for each in parts}) != 1:
            raise _Unsupported("lost slice, or packet with several pictures")
        is_idr = unit_type("h264", slices[0]) == h264.IDR
        if (is_keyframe or not self._packets) and not is_idr:
            raise _Unsupported("keyframe that is no IDR picture")
        self._add_picture(parts, self._sequence, is_idr=is_idr, is_reference=h264.is_reference(slices[0]))

    def _add_set(self, unit: memoryview) -> None:
        data = bytes(unit).rstrip(b"\0")
        if data in self._sets:
            return
        if self._packets:
            raise _Unsupported("parameter sets change")
        self._sets.add(data)
        if unit_type("h264", unit) == h264.PICTURE_PARAMETERS:
            number, parameters = h264.read_picture_parameters(unit)
            if number in self._pictures:
                raise _Unsupported("two picture parameter sets of one number")
            self._pictures[number] = parameters
        elif unit_type("h264", unit) == h264.SEQUENCE_PARAMETERS:
            if self._sequence is not None:
                raise _Unsupported("two sequence parameter sets")
            self._sequence = found = h264.read_sequence_parameters(unit)
            if not found.frames_only or found.has_separate_planes or found.may_have_gaps or found.order_type != 0:
                raise _Unsupported("sequence with fields, planes, gaps or another picture order")
            if found.max_references > MAX_REFERENCES:  # FFmpeg rejects it; the model's cost would be quadratic
                raise _Unsupported("too many reference pictures")

    def _add_picture(
        self, parts: Sequence[SliceReferences], sequence: h264.SequenceParameters, *, is_idr: bool, is_reference: bool
    ) -> None:
        part = parts[0]
        if is_idr:
            self._buffer, self._last = [], None
        number, last, size = len(self._packets), self._last, 1 << sequence.order_bits
        order = part.order_lsb
        if last is not None:  # section 8.2.1.1
            order = nearest_order(part.order_lsb, last.order, size)
            if (part.frame_num - last.frame_num) % (1 << sequence.frame_num_bits) != 1:
                raise _Unsupported("lost picture")
        picture = _Picture(number, part.frame_num, order)
        lists = (self._active(each, which, picture, sequence) for each in parts for which in range(2))
        self._packets.append(tuple({each.number for entries in lists for each in entries}))
        if part.kind != B_SLICE:
            self._anchors.add(number)
        if is_reference:
            self._mark(part, picture, sequence)
            self._last = picture

    def _active(
        self, part: SliceReferences, which: int, picture: _Picture, sequence: h264.SequenceParameters
    ) -> Sequence[_Picture]:
        """The active entries of a reference list (section 8.2.4.2), after its modification (section 8.2.4.3)."""
        if not part.active[which]:
            return ()
        initial = self._buffer[::-1] if part.kind == P_SLICE else self._by_order(picture, which)
        frame_nums = itertools.accumulate(part.changes[which], initial=picture.frame_num)
        placed = [self._find(frame_num, sequence) for frame_num in itertools.islice(frame_nums, 1, None)]
        return [*placed, *(each for each in initial if each not in placed)][: part.active[which]]

    def _by_order(self, picture: _Picture, which: int) -> list[_Picture]:
        """The initial list of a B picture (section 8.2.4.2.3): the nearest before it in list 0, after it in list 1."""
        near = sorted(self._buffer, key=lambda each: abs(each.order - picture.order))
        before, after = ([each for each in near if (each.order > picture.order) is side] for side in (False, True))
        if which == 0:
            return before + after
        if len(near) > 1 and not (before and after):  # equal lists: the first two entries are exchanged
            near[:2] = near[1::-1]
            return near
        return after + before

    def _find(self, frame_num: int, sequence: h264.SequenceParameters) -> _Picture:
        for each in self._buffer:
            if (each.frame_num - frame_num) % (1 << sequence.frame_num_bits) == 0:
                return each
        raise _Unsupported("reference to a missing picture")

    def _mark(self, part: SliceReferences, picture: _Picture, sequence: h264.SequenceParameters) -> None:
        """Add a reference picture to the buffer, and remove others (section 8.2.5)."""
        size = max(sequence.max_references, 1)
        if part.removals is not None:
            for change in part.removals:
                self._buffer.remove(self._find(picture.frame_num + change, sequence))
        elif len(self._buffer) >= size:
            del self._buffer[0]
        self._buffer.append(picture)
        if len(self._buffer) > size:
            raise _Unsupported("too many reference pictures")


def nearest_order(lsb: int, before: int, size: int) -> int:
    """``PicOrderCnt`` of a frame (section 8.2.1.1).

    Args:
        lsb: the value that its slices contain.
        before: ``PicOrderCnt`` of the last reference picture. A distance of half the range is ahead.
        size: number of values of ``lsb``.
    """
    half = size // 2
    return before + half - (before + half - lsb) % size
