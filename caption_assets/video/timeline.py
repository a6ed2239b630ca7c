"""The timeline of a clip: the pictures that a player shows, in order, each with its time and the packet that holds it.

It is built in one pass over the packets. Where these do not prove it (pictures out of order without timestamps that say
so, missing or equal timestamps, pictures packed together), all of the clip is decoded: the decoder's output is in
presentation order, and each of its pictures names the packet that it came from.
"""

from __future__ import annotations

import heapq
import itertools
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction

from av import Packet
from av.container import InputContainer
from av.video.stream import VideoStream

from caption_assets.errors import UnreadableClip
from caption_assets.store.span import END_BYTES
from caption_assets.video.container import BROKEN, DECODER
from caption_assets.video.parameter_sets import ParameterSetReader
from caption_assets.video.payload import EXAMINED, NOT_CODED_BYTES, REPEATED, SHOWN, SKIPPING, Holds, PayloadReader
from caption_assets.video.timestamps import (
    REORDERED,
    Clock,
    NoTimestamps,
    at_a_possible_rate,
    in_presentation_order,
    recording_offsets,
)

MISSING = -(2**63)
"""A timestamp that the file does not state."""
WITH_PRESENTATION_TIMES = frozenset({"mov", "matroska", "mpegts", "flv", "ogg"})
"""Containers that state each picture's presentation time. For others FFmpeg estimates it from the decoding order."""
WITH_DECODING_TIMES = frozenset({"mov", "mpegts", "mpeg", "flv", "avi", "mxf"})
"""Containers that state each packet's decoding time. For others FFmpeg estimates it, wrongly after a jump."""
LIVE = frozenset({"mov", "mpegts", "mpeg", "flv"})
"""Containers of live streams: a gap in them that no packet's duration covers is a jump of the clock. In others it is a
picture that stays, as in the recording of a screen."""
LIVE_GAP_SECONDS = 10.0
"""FFmpeg's own limit (``-dts_delta_threshold``)."""
GAP_SECONDS = 1800.0
"""No picture is meant to stay for longer, in any container."""
MAX_RATE = 1000
"""Pictures a second. Files of high-speed cameras are played more slowly than they were recorded."""
BACKWARD_SECONDS = 0.5
"""Muxers with errors step back by a few packets; recordings are longer."""
READ_WHOLE = frozenset({"vp8", "vp9", "mpeg1video", "mpeg2video"})
"""Codecs, by FFmpeg's names, whose samples without a picture may be of any size."""
SMALL_BYTES = 512
"""A sample of more bytes holds a picture: metadata is short."""
SMALL_SAMPLES = 2
"""Number of the smallest samples that are examined. Each may be one more request to the store."""
WITH_DURATIONS = frozenset({"mov", "gif", "apng"})
"""Containers that state for how long each picture is shown."""
AV_TIME_BASE = 1_000_000
"""Units of a container's duration in a second (FFmpeg's AV_TIME_BASE)."""
DURATION = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")
"""The tag with which muxers state the length of one track."""
EBML = b"\x1a\x45\xdf\xa3"
"""First bytes of a Matroska file (RFC 8794, 11.2.1)."""
SEGMENT, SEGMENT_BYTES = b"\x18\x53\x80\x67", 4096
"""ID of Matroska's outermost element with the clip (RFC 9559, 5.1), and the bytes at the front that hold its header."""


class NeedsPayload(Exception):
    """A timeline that the clip's index alone does not prove."""


@dataclass(slots=True)
class Packets:
    """The packets of a clip's stream in file order: a few bytes each, without their content.

    Packets that end the stream, without a time or content, are not among them.
    """

    pts: array[int] = field(default_factory=lambda: array("q"))
    """Presentation timestamps, or ``MISSING``."""
    dts: array[int] = field(default_factory=lambda: array("q"))
    """Decoding timestamps, or ``MISSING``."""
    durations: array[int] = field(default_factory=lambda: array("q"))
    """0 where unknown."""
    holds: bytearray = field(default_factory=bytearray)
    """A ``Holds`` each."""
    flagged: bytearray = field(default_factory=bytearray)
    """1 where the container calls the packet a keyframe."""
    keys: array[int] = field(default_factory=lambda: array("q"))
    """Numbers of the packets that the container calls keyframes and whose content does not disprove it."""
    discarded: bytearray = field(default_factory=bytearray)
    """1 where an edit list hides the picture."""
    has_b_pictures: bool = True
    """Whether some pictures are decoded in another order than shown; True as well where that is not known."""
    can_start_at_any_keyframe: bool = True
    """False where parameters of decoding change elsewhere."""

    def __len__(self) -> int:
        return len(self.pts)


def numbered(packets: Iterable[Packet[VideoStream]]) -> Iterable[tuple[int, Packet[VideoStream]]]:
    """The packets of a stream with their numbers, without those that only end the stream."""
    return enumerate(packet for packet in packets if packet.size or packet.pts is not None or packet.dts is not None)


def read_packets(
    stream: VideoStream,
    packets: Iterable[Packet[VideoStream]],
    examined: frozenset[int] | None,
    *,
    has_payload: bool = True,
    most: int | None = None,
) -> Packets:
    """Read all packets of a stream.

    Args:
        stream: the packets' stream.
        packets: in file order.
        examined: positions in the file of the packets to examine first, as ``samples_to_examine`` returns them. The
            content of the others counts if one of these holds no picture of its own.
        has_payload: False if no other packet's content can be read.
        most: number of packets after which to stop; None for all.

    Raises:
        NeedsPayload: if the content of other packets counts and cannot be read.
    """
    found = Packets()
    reader, sets = PayloadReader(stream), ParameterSetReader(stream)
    is_examined = stream.codec_context.codec.canonical_name in EXAMINED | SKIPPING
    holds_pictures = examined is not None
    for number, packet in itertools.islice(numbered(packets), most):
        content = SHOWN if packet.size else REPEATED
        is_sample = examined is not None and packet.pos in examined
        if is_examined and packet.size and (has_payload or is_sample):
            content = reader.read(memoryview(packet))
        if is_sample and content.holds != Holds.PICTURE:
            holds_pictures = False
        found.pts.append(MISSING if packet.pts is None else packet.pts)
        found.dts.append(MISSING if packet.dts is None else packet.dts)
        found.durations.append(packet.duration or 0)
        found.holds.append(content.holds)
        found.flagged.append(packet.is_keyframe)
        found.discarded.append(packet.is_discard)
        is_key = packet.is_keyframe and content.can_be_key
        if is_key:
            found.keys.append(number)
        if has_payload and packet.size:
            sets.add(packet, is_keyframe=is_key)
    if holds_pictures:
        found.holds = bytearray([Holds.PICTURE]) * len(found)
    elif not has_payload:
        raise NeedsPayload
    if examined is None and reader.has_b_pictures is not None:
        found.has_b_pictures = reader.has_b_pictures
    else:
        found.has_b_pictures = stream.codec_context.has_b_frames
    found.can_start_at_any_keyframe = sets.can_start_at_any_keyframe
    return found


def samples_to_examine(container: InputContainer, stream: VideoStream, size: int) -> frozenset[int] | None:
    """Positions of the samples whose content is examined; None for all packets.

    An MP4 index lists every sample, so that a clip can be described by it. Samples without a picture are small and come
    at regular intervals. If the smallest hold pictures, and all at either end of the file, so do the others.

    Args:
        container: the clip's.
        stream: the clip's video.
        size: of the file, in bytes.
    """
    if _family(container) != "mov" or not stream.frames or not stream.index_entries:
        return None
    codec = stream.codec_context.codec.canonical_name
    if codec in ("vp8", "vp9", "mpeg1video", "mpeg2video") or (
        codec == "h264" and PayloadReader(stream).may_have_fields
    ):
        return None
    if codec not in EXAMINED | SKIPPING:
        return frozenset()
    limit = SMALL_BYTES if codec in ("h264", "hevc") else NOT_CODED_BYTES
    places = [(entry.size, entry.pos) for entry in stream.index_entries]
    small = heapq.nsmallest(SMALL_SAMPLES, (place for place in places if place[0] <= limit))
    near = ((length, at) for length, at in places if at + length <= END_BYTES or at >= size - END_BYTES)
    return frozenset(at for _, at in (*small, *near))


@dataclass(frozen=True, slots=True)
class Timeline:
    """The pictures of a clip in presentation order."""

    times: tuple[float, ...]
    """Seconds from the first, ascending."""
    end: float
    """Seconds from the first until the last picture is no longer shown."""
    sources: Sequence[int]
    """Number of the packet that each is decoded from; that of the one before where it is repeated."""
    stamps: Sequence[int]
    """Presentation timestamps by packet, on one clock; ``MISSING`` where there is none."""


def build_timeline(
    container: InputContainer,
    stream: VideoStream,
    packets: Packets,
    presentation_order: Callable[[], Sequence[int]],
    *,
    is_whole: bool = True,
) -> Timeline:
    """The timeline of a clip.

    Args:
        container: the clip's.
        stream: the clip's video.
        packets: all of the stream's.
        presentation_order: decodes the clip and returns the number of each picture's packet, in presentation order.
        is_whole: False if the file is known to be cut off, so that the length that it states does not count.

    Raises:
        UnreadableClip: if there is no picture, or its time is not certain.
    """
    base = stream.time_base
    if not base:
        raise _empty()
    family, nominal = _family(container), _nominal(stream, packets)
    has_clock = family in WITH_DECODING_TIMES
    limits = Clock(
        step=nominal or 1,
        backward=round(BACKWARD_SECONDS / base),
        forward=round((LIVE_GAP_SECONDS if family in LIVE else GAP_SECONDS) / base),
        longest=round(GAP_SECONDS / base),
        shortest=int(1 / (MAX_RATE * base)),
    )
    pts, dts = (_known(each) for each in (packets.pts, packets.dts))
    clock = [stamp if other is None or not has_clock else other for stamp, other in zip(pts, dts, strict=True)]
    window = 1 if has_clock else REORDERED + 1
    offsets = recording_offsets(pts, clock, packets.durations, limits, window)
    stamps, decoding = _moved(pts, offsets), _moved(dts, offsets)
    order = _proven_order(family, packets, stamps, decoding)
    is_proven = order is not None
    try:
        if order is None:
            order = [number for number in presentation_order() if not packets.discarded[number]]
            decoded = [decoding[number] for number in sorted(order)]
            placed = in_presentation_order([stamps[number] for number in order], decoded, nominal)
        else:
            placed = [stamp for number in order if (stamp := stamps[number]) is not None]
        placed = at_a_possible_rate(placed, nominal, limits)
    except NoTimestamps as error:
        raise UnreadableClip(
            "no_timestamps",
            f"the file does not state when each picture is shown ({error}): encode the video again, into MP4 say",
        ) from error
    if not order:
        raise _empty()
    for number, stamp in zip(order, placed, strict=True):
        stamps[number] = stamp
    shown = _with_repeats(packets, stamps, list(zip(placed, order, strict=True)))
    first, last = shown[0][0], shown[-1][0]
    has_durations = is_proven and family in WITH_DURATIONS
    end = last + _last_interval(packets, shown, limits.step, has_durations=has_durations)
    if is_whole and not any(offsets):
        end = max(end, _stated_end(container, stream, packets, first, base))
    return Timeline(
        times=tuple((stamp - first) * base.numerator / base.denominator for stamp, _ in shown),
        end=(end - first) * base.numerator / base.denominator,
        sources=array("q", (number for _, number in shown)),
        stamps=array("q", (MISSING if stamp is None else stamp for stamp in stamps)),
    )


def decode_order(stream: VideoStream, packets: Iterable[Packet[VideoStream]]) -> list[int]:
    """Numbers of the packets that a stream's pictures come from, in presentation order: all of it is decoded."""
    context = stream.codec_context
    context.options = {**DECODER, "skip_loop_filter": "all"}  # pixels do not matter here
    order: list[int] = []

    def decode(packet: Packet[VideoStream] | None) -> None:
        with suppress(*BROKEN):  # of one packet; the others go on
            order.extend(frame.pts for frame in context.decode(packet) if frame.pts is not None)

    for number, packet in numbered(packets):
        if packet.size:
            packet.pts = packet.dts = number  # which a decoder hands on with the picture
            decode(packet)
    decode(None)
    return order


def is_whole(head: bytes, size: int) -> bool:
    """False if a Matroska file ends before its clip does, so that the length that it states is not that of its content.

    Args:
        head: the first ``SEGMENT_BYTES`` of the file.
        size: of the file, in bytes.
    """
    at = head.find(SEGMENT)
    if not head.startswith(EBML) or at < 0 or at + 12 > len(head):
        return True
    length = 9 - head[at + 4].bit_length()
    value = int.from_bytes(head[at + 4 : at + 4 + length]) & (1 << 7 * length) - 1
    is_unknown = value == (1 << 7 * length) - 1
    return is_unknown or at + 4 + length + value <= size


def _known(stamps: Iterable[int]) -> list[int | None]:
    return [None if stamp == MISSING else stamp for stamp in stamps]


def _moved(stamps: Sequence[int | None], offsets: Sequence[int]) -> list[int | None]:
    return [None if stamp is None else stamp + offset for stamp, offset in zip(stamps, offsets, strict=True)]


def _family(container: InputContainer) -> str:
    return container.format.name.partition(",")[0]


def _empty() -> UnreadableClip:
    return UnreadableClip("damaged", "the file has a video stream but no frames: it may be cut off")


def _nominal(stream: VideoStream, packets: Packets) -> int | None:
    """The interval between pictures that the file states, in ticks."""
    duration, times = Counter(packets.durations).most_common(1)[0] if packets else (0, 0)
    if duration > 0 and times * 2 > len(packets):
        return duration
    rate = stream.guessed_rate or stream.average_rate
    base = stream.time_base
    return max(round(1 / (rate * base)), 1) if rate and base else None


def _proven_order(
    family: str, packets: Packets, stamps: Sequence[int | None], decoding: Sequence[int | None]
) -> list[int] | None:
    """Numbers of the pictures' packets in presentation order, if packets prove it.

    Pictures to be shown before the first keyframe are left out: they are predicted from pictures that the clip does not
    have, as in a transport stream that was cut without regard for its groups. Where no packet is called a keyframe, as
    with gradual refresh, all are kept.
    """
    if Holds.UNCERTAIN in packets.holds:
        return None
    numbers = [
        number
        for number, (holds, discarded) in enumerate(zip(packets.holds, packets.discarded, strict=True))
        if holds == Holds.PICTURE and not discarded
    ]
    placed = [(stamp, number) for number in numbers if (stamp := stamps[number]) is not None]
    if len(placed) < len(numbers) or len({stamp for stamp, _ in placed}) < len(placed):
        return None
    is_ascending = all(before < after for before, after in itertools.pairwise(placed))
    if family in WITH_DECODING_TIMES and _steps_back(decoding):
        return None  # recordings overlap
    # Pictures out of order need times of presentation: those stated, not FFmpeg's estimates or times of decoding.
    if packets.has_b_pictures if is_ascending else family not in WITH_PRESENTATION_TIMES:
        return None
    first_key = packets.flagged.find(1)
    start = stamps[first_key] if first_key >= 0 else None
    return [number for stamp, number in sorted(placed) if start is None or stamp >= start]


def _steps_back(stamps: Sequence[int | None]) -> bool:
    known = (stamp for stamp in stamps if stamp is not None)
    return any(after < before for before, after in itertools.pairwise(known))


def _with_repeats(
    packets: Packets, stamps: Sequence[int | None], shown: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Timestamps and packets of all pictures, those included that repeat the one before."""
    if Holds.REPEAT not in packets.holds:
        return shown
    taken = {stamp for stamp, _ in shown}
    repeats = [
        (stamp, -1)
        for number, stamp in enumerate(stamps)
        if packets.holds[number] == Holds.REPEAT and stamp is not None and stamp > shown[0][0] and stamp not in taken
    ]
    merged: list[tuple[int, int]] = []
    for stamp, number in sorted([*shown, *repeats]):
        merged.append((stamp, merged[-1][1] if number < 0 else number))
    return merged


def _last_interval(packets: Packets, shown: Sequence[tuple[int, int]], step: int, *, has_durations: bool) -> int:
    """Ticks for which the last picture is shown: as its packet states, or for the average interval."""
    stamp, number = shown[-1]
    if has_durations and number == len(packets) - 1 and packets.durations[number] > 0:
        return packets.durations[number]
    return round((stamp - shown[0][0]) / (len(shown) - 1)) or 1 if len(shown) > 1 else step


def _stated_end(container: InputContainer, stream: VideoStream, packets: Packets, first: int, base: Fraction) -> int:
    """The tick at which the clip ends as the container states; that of its first picture if it does not state one."""
    family = _family(container)
    ends = [first]
    if family == "mov" and stream.duration and len(packets) >= stream.frames:
        ends.append(first + stream.duration)
    if family == "matroska" and container.duration:
        whole = int(Fraction(container.duration, AV_TIME_BASE) / base)
        if found := DURATION.fullmatch(stream.metadata.get("DURATION", "")):
            hours, minutes, seconds = found.groups()
            own = (int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)) / base
            ends.append(min(int(own), whole))  # a tag may be left from another file
        elif len(container.streams) == 1:
            ends.append(whole)
    return max(ends)
