"""The timeline of a clip: its pictures in presentation order, each with its time and the packet that holds it.

It is built in one pass over the packets. The packets do not prove it if timestamps are missing or equal, if timestamps
do not show the order of reordered pictures, or if a packet contains several pictures. Then the whole clip is decoded:
the decoder returns the pictures in presentation order, each with the number of its packet.
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
from caption_assets.video.container import DECODER_OPTIONS, FFMPEG_ERRORS
from caption_assets.video.parameter_sets import ParameterSetReader
from caption_assets.video.payload import (
    NOT_CODED_BYTES,
    PARSED_CODECS,
    PICTURE_PAYLOAD,
    REPEAT_PAYLOAD,
    SKIPPING_CODECS,
    PacketContent,
    PayloadParser,
)
from caption_assets.video.timestamps import (
    MAX_REORDERED,
    ClockLimits,
    UncertainTimestamps,
    enforce_max_rate,
    recording_offsets,
    repair_timestamps,
)

MISSING = -(2**63)
"""A timestamp that the file does not contain."""
CONTAINERS_WITH_PTS = frozenset({"mov", "matroska", "mpegts", "flv", "ogg"})
"""Containers that store PTS. For others FFmpeg estimates them from the decoding order."""
CONTAINERS_WITH_DTS = frozenset({"mov", "mpegts", "mpeg", "flv", "avi", "mxf"})
"""Containers that store DTS. For others FFmpeg estimates them, wrongly after a jump."""
LIVE_CONTAINERS = frozenset({"mov", "mpegts", "mpeg", "flv"})
"""Containers of live streams. A gap in their timestamps that no packet's duration covers is a jump of the clock. In
other containers it is a still picture, as in a screen recording."""
MAX_LIVE_GAP_SECONDS = 10.0
"""Maximum gap in a live stream: FFmpeg's own limit (``-dts_delta_threshold``)."""
MAX_GAP_SECONDS = 1800.0
"""Maximum duration of a picture, in any container."""
MAX_RATE = 1000
"""Maximum number of pictures per second. Files of high-speed cameras are played more slowly than they were recorded."""
MAX_BACKWARD_SECONDS = 0.5
"""Maximum step back within a recording. Faulty muxers step back by a few packets; recordings are longer."""
PARSED_COMPLETELY = frozenset({"vp8", "vp9", "mpeg1video", "mpeg2video"})
"""Codecs, by FFmpeg's names, whose samples without a picture may have any size."""
MAX_METADATA_BYTES = 512
"""Maximum size of a sample without a picture, in H.264 and H.265: metadata is short."""
SMALLEST_SAMPLES = 2
"""Number of the smallest samples to parse. Each may take one more request to the store."""
CONTAINERS_WITH_DURATIONS = frozenset({"mov", "gif", "apng"})
"""Containers that store the duration of each picture."""
AV_TIME_BASE = 1_000_000
"""Units of a container's duration in a second (FFmpeg's AV_TIME_BASE)."""
DURATION = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")
"""The tag in which Matroska muxers store the length of one track."""


class NeedsPayload(Exception):
    """Raised if the clip's index alone does not prove its timeline."""


@dataclass(slots=True)
class Packets:
    """Metadata of a stream's packets, in file order, in a few bytes per packet.

    Packets without timestamp and payload, which only end the stream, are omitted.
    """

    pts: array[int] = field(default_factory=lambda: array("q"))
    """Presentation timestamps, or ``MISSING``."""
    dts: array[int] = field(default_factory=lambda: array("q"))
    """Decoding timestamps, or ``MISSING``."""
    durations: array[int] = field(default_factory=lambda: array("q"))
    """0 where unknown."""
    contents: bytearray = field(default_factory=bytearray)
    """``PacketContent`` of each packet."""
    keyframe_flags: bytearray = field(default_factory=bytearray)
    """1 where the container flags the packet as a keyframe."""
    keyframes: array[int] = field(default_factory=lambda: array("q"))
    """Numbers of the packets that the container flags as keyframes, unless their payload contradicts."""
    discarded: bytearray = field(default_factory=bytearray)
    """1 where an edit list hides the picture."""
    has_b_pictures: bool = True
    """Whether decoding and presentation order may differ."""
    can_start_at_any_keyframe: bool = True
    """False if parameter sets change between keyframes."""

    def __len__(self) -> int:
        return len(self.pts)


def numbered(packets: Iterable[Packet[VideoStream]]) -> Iterable[tuple[int, Packet[VideoStream]]]:
    """The packets of a stream with their numbers, without packets that only end the stream."""
    return enumerate(packet for packet in packets if packet.size or packet.pts is not None or packet.dts is not None)


def read_packets(
    stream: VideoStream,
    packets: Iterable[Packet[VideoStream]],
    parsed: frozenset[int] | None,
    *,
    has_payload: bool = True,
    max_packets: int | None = None,
) -> Packets:
    """Read the metadata of a stream's packets.

    Args:
        stream: the packets' stream.
        packets: in file order.
        parsed: file positions of the packets to parse first, as ``samples_to_parse`` returns them. If all of these
            contain a picture, so do the others.
        has_payload: False if only the payloads of these packets can be read.
        max_packets: number of packets after which to stop; None for all.

    Raises:
        NeedsPayload: if other packets must be parsed and their payload cannot be read.
    """
    found = Packets()
    reader, sets = PayloadParser(stream), ParameterSetReader(stream)
    is_examined = stream.codec_context.codec.canonical_name in PARSED_CODECS | SKIPPING_CODECS
    has_only_pictures = parsed is not None
    for number, packet in itertools.islice(numbered(packets), max_packets):
        payload = PICTURE_PAYLOAD if packet.size else REPEAT_PAYLOAD
        is_sample = parsed is not None and packet.pos in parsed
        if is_examined and packet.size and (has_payload or is_sample):
            payload = reader.read(memoryview(packet))
        if is_sample and payload.content != PacketContent.PICTURE:
            has_only_pictures = False
        found.pts.append(MISSING if packet.pts is None else packet.pts)
        found.dts.append(MISSING if packet.dts is None else packet.dts)
        found.durations.append(packet.duration or 0)
        found.contents.append(payload.content)
        found.keyframe_flags.append(packet.is_keyframe)
        found.discarded.append(packet.is_discard)
        is_keyframe = packet.is_keyframe and payload.can_be_keyframe
        if is_keyframe:
            found.keyframes.append(number)
        if has_payload and packet.size:
            sets.add(packet, is_keyframe=is_keyframe)
    if has_only_pictures:
        found.contents = bytearray([PacketContent.PICTURE]) * len(found)
    elif not has_payload:
        raise NeedsPayload
    if parsed is None and reader.has_b_pictures is not None:
        found.has_b_pictures = reader.has_b_pictures
    else:
        found.has_b_pictures = stream.codec_context.has_b_frames
    found.can_start_at_any_keyframe = sets.can_start_at_any_keyframe
    return found


def samples_to_parse(container: InputContainer, stream: VideoStream, size: int) -> frozenset[int] | None:
    """File positions of the samples to parse; None for all packets.

    An MP4 index lists every sample, so that it suffices to probe a clip. Samples without a picture are small and occur
    at regular intervals. If the smallest samples and all samples at the ends of the file contain pictures, so do the
    others.

    Args:
        container: the clip's container.
        stream: the clip's video stream.
        size: size of the file, in bytes.
    """
    if _demuxer(container) != "mov" or not stream.frames or not stream.index_entries:
        return None
    codec = stream.codec_context.codec.canonical_name
    if codec in PARSED_COMPLETELY or (codec == "h264" and PayloadParser(stream).may_have_fields):
        return None
    if codec not in PARSED_CODECS | SKIPPING_CODECS:
        return frozenset()
    limit = MAX_METADATA_BYTES if codec in ("h264", "hevc") else NOT_CODED_BYTES
    places = [(entry.size, entry.pos) for entry in stream.index_entries]
    small = heapq.nsmallest(SMALLEST_SAMPLES, (place for place in places if place[0] <= limit))
    near = ((length, at) for length, at in places if at + length <= END_BYTES or at >= size - END_BYTES)
    return frozenset(at for _, at in (*small, *near))


@dataclass(frozen=True, slots=True)
class Timeline:
    """The pictures of a clip in presentation order."""

    times: tuple[float, ...]
    """Presentation time of each picture in seconds from the first, ascending."""
    end: float
    """End of the last picture's presentation, in seconds from the first."""
    sources: Sequence[int]
    """Number of the packet that each picture is decoded from. A repeated picture has that of the picture before it."""
    timestamps: Sequence[int]
    """Presentation timestamp of each packet, on one clock; ``MISSING`` where there is none."""


def build_timeline(
    container: InputContainer,
    stream: VideoStream,
    packets: Packets,
    presentation_order: Callable[[], Sequence[int]],
    *,
    is_complete: bool = True,
) -> Timeline:
    """Build the timeline of a clip.

    Args:
        container: the clip's container.
        stream: the clip's video stream.
        packets: all packets of the stream.
        presentation_order: decodes the clip and returns the number of each picture's packet, in presentation order.
        is_complete: False if the file is known to be cut off: the length in its header is then ignored.

    Raises:
        UnreadableClip: if there is no picture, or the timestamps are uncertain.
    """
    base = stream.time_base
    if not base:
        raise _no_frames()
    demuxer, nominal = _demuxer(container), _nominal_interval(stream, packets)
    has_clock = demuxer in CONTAINERS_WITH_DTS
    limits = ClockLimits(
        step=nominal or 1,
        backward=round(MAX_BACKWARD_SECONDS / base),
        forward=round((MAX_LIVE_GAP_SECONDS if demuxer in LIVE_CONTAINERS else MAX_GAP_SECONDS) / base),
        longest=round(MAX_GAP_SECONDS / base),
        shortest=int(1 / (MAX_RATE * base)),
    )
    pts, dts = (_optional(each) for each in (packets.pts, packets.dts))
    clock = [timestamp if other is None or not has_clock else other for timestamp, other in zip(pts, dts, strict=True)]
    window = 1 if has_clock else MAX_REORDERED + 1
    offsets = recording_offsets(pts, clock, packets.durations, limits, window)
    has_one_clock = not any(offsets)
    timestamps, decoding = (pts, dts) if has_one_clock else (_with_offsets(pts, offsets), _with_offsets(dts, offsets))
    order = _proven_order(demuxer, packets, timestamps, decoding)
    is_proven = order is not None
    try:
        if order is None:
            order = [number for number in presentation_order() if not packets.discarded[number]]
            decoded = [decoding[number] for number in sorted(order)]
            placed = repair_timestamps([timestamps[number] for number in order], decoded, nominal)
        else:
            placed = [timestamp for number in order if (timestamp := timestamps[number]) is not None]
        placed = enforce_max_rate(placed, nominal, limits)
    except UncertainTimestamps as error:
        raise UnreadableClip(
            "no_timestamps",
            f"the file's timestamps are unusable ({error}): re-encode the video, for example to MP4",
        ) from error
    if not order:
        raise _no_frames()
    for number, timestamp in zip(order, placed, strict=True):
        timestamps[number] = timestamp
    shown = _with_repeats(packets, timestamps, list(zip(placed, order, strict=True)))
    first, last = shown[0][0], shown[-1][0]
    has_durations = is_proven and demuxer in CONTAINERS_WITH_DURATIONS
    end = last + _last_interval(packets, shown, limits.step, has_durations=has_durations)
    if is_complete and has_one_clock:
        end = max(end, _stated_end(container, stream, packets, first, base))
    numerator, denominator = base.as_integer_ratio()
    return Timeline(
        times=tuple((timestamp - first) * numerator / denominator for timestamp, _ in shown),
        end=(end - first) * numerator / denominator,
        sources=array("q", (number for _, number in shown)),
        timestamps=array("q", (MISSING if timestamp is None else timestamp for timestamp in timestamps)),
    )


def decoded_presentation_order(stream: VideoStream, packets: Iterable[Packet[VideoStream]]) -> list[int]:
    """Decode a stream and return the packet number of each picture, in presentation order."""
    context = stream.codec_context
    context.options = {**DECODER_OPTIONS, "skip_loop_filter": "all"}  # pixels are not used
    order: list[int] = []

    def decode(packet: Packet[VideoStream] | None) -> None:
        with suppress(*FFMPEG_ERRORS):  # only the damaged packet's picture is lost
            order.extend(frame.pts for frame in context.decode(packet) if frame.pts is not None)

    for number, packet in numbered(packets):
        if packet.size:
            packet.pts = packet.dts = number  # the decoder copies it to the picture
            decode(packet)
    decode(None)
    return order


def _optional(timestamps: Iterable[int]) -> list[int | None]:
    return [None if timestamp == MISSING else timestamp for timestamp in timestamps]


def _with_offsets(timestamps: Sequence[int | None], offsets: Sequence[int]) -> list[int | None]:
    return [None if time is None else time + offset for time, offset in zip(timestamps, offsets, strict=True)]


def _demuxer(container: InputContainer) -> str:
    return container.format.name.partition(",")[0]


def _no_frames() -> UnreadableClip:
    return UnreadableClip("damaged", "the file has a video stream but no frames: it may be cut off")


def _nominal_interval(stream: VideoStream, packets: Packets) -> int | None:
    """The interval between pictures that the file states, in ticks; None if it states none."""
    duration, times = Counter(packets.durations).most_common(1)[0] if packets else (0, 0)
    if duration > 0 and times * 2 > len(packets):
        return duration
    rate = stream.guessed_rate or stream.average_rate
    base = stream.time_base
    return max(round(1 / (rate * base)), 1) if rate and base else None


def _proven_order(
    demuxer: str, packets: Packets, timestamps: Sequence[int | None], decoding: Sequence[int | None]
) -> list[int] | None:
    """Numbers of the pictures' packets in presentation order; None if the packets do not prove it.

    Pictures to be shown before the first keyframe are omitted: they are predicted from pictures that the clip lacks, as
    in a transport stream that was cut within a group of pictures. If no packet is flagged as a keyframe, as with
    gradual refresh, no picture is omitted.
    """
    if PacketContent.UNKNOWN in packets.contents:
        return None
    numbers = [
        number
        for number, (content, discarded) in enumerate(zip(packets.contents, packets.discarded, strict=True))
        if content == PacketContent.PICTURE and not discarded
    ]
    placed = [(timestamp, number) for number in numbers if (timestamp := timestamps[number]) is not None]
    if len(placed) < len(numbers) or len({timestamp for timestamp, _ in placed}) < len(placed):
        return None
    is_ascending = all(before < after for before, after in itertools.pairwise(placed))
    if demuxer in CONTAINERS_WITH_DTS and _steps_back(decoding):
        return None  # recordings overlap
    # The order of reordered pictures is proven by PTS in the file, but not by FFmpeg's estimates or by DTS.
    if packets.has_b_pictures if is_ascending else demuxer not in CONTAINERS_WITH_PTS:
        return None
    first_key = packets.keyframe_flags.find(1)
    start = timestamps[first_key] if first_key >= 0 else None
    return [number for timestamp, number in sorted(placed) if start is None or timestamp >= start]


def _steps_back(timestamps: Sequence[int | None]) -> bool:
    known = (timestamp for timestamp in timestamps if timestamp is not None)
    return any(after < before for before, after in itertools.pairwise(known))


def _with_repeats(
    packets: Packets, timestamps: Sequence[int | None], shown: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Timestamps and packets of all pictures, including repeated ones."""
    if PacketContent.REPEAT not in packets.contents:
        return shown
    taken = {timestamp for timestamp, _ in shown}
    repeats = [
        (time, -1)
        for number, time in enumerate(timestamps)
        if packets.contents[number] == PacketContent.REPEAT
        and time is not None
        and time > shown[0][0]
        and time not in taken
    ]
    merged: list[tuple[int, int]] = []
    for timestamp, number in sorted([*shown, *repeats]):
        merged.append((timestamp, merged[-1][1] if number < 0 else number))
    return merged


def _last_interval(packets: Packets, shown: Sequence[tuple[int, int]], step: int, *, has_durations: bool) -> int:
    """Duration of the last picture in ticks: that of its packet, or else the average interval."""
    timestamp, number = shown[-1]
    if has_durations and number == len(packets) - 1 and packets.durations[number] > 0:
        return packets.durations[number]
    return round((timestamp - shown[0][0]) / (len(shown) - 1)) or 1 if len(shown) > 1 else step


def _stated_end(container: InputContainer, stream: VideoStream, packets: Packets, first: int, base: Fraction) -> int:
    """The end of the clip that the container states, in ticks; ``first`` if it states none."""
    demuxer = _demuxer(container)
    ends = [first]
    if demuxer == "mov" and stream.duration and len(packets) >= stream.frames:
        ends.append(first + stream.duration)
    if demuxer == "matroska" and container.duration:
        complete = int(Fraction(container.duration, AV_TIME_BASE) / base)
        if found := DURATION.fullmatch(stream.metadata.get("DURATION", "")):
            hours, minutes, seconds = found.groups()
            own = (int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)) / base
            ends.append(min(int(own), complete))  # the tag may come from the file that this one was cut from
        elif len(container.streams) == 1:
            ends.append(complete)
    return max(ends)
