"""What a clip's container says of it: its pictures' form, its length, and the time of every frame."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, cast

from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from caption_assets.errors import UnreadableClip
from caption_assets.store.span_file import SpanFile
from caption_assets.video.boxes import read_index
from caption_assets.video.container import check_size, first_orientation, open_video, read_track, with_own_orientation
from caption_assets.video.display import UPRIGHT, Orientation
from caption_assets.video.fields import INTERLACED
from caption_assets.video.picture import displayed_size
from caption_assets.video.timeline import (
    SEGMENT_BYTES,
    NeedsPayload,
    Packets,
    build_timeline,
    decode_order,
    is_whole,
    read_packets,
    samples_to_examine,
)
from caption_assets.video.track import Track

JITTER_SECONDS = 0.002
"""By how much frame intervals may differ in a clip of constant rate: containers round a frame's time to ticks of 1 ms
(Matroska, FLV) or 1/600 s (QuickTime), so that intervals come out up to one tick longer or shorter."""
FIRST_BYTES = 4096
"""Bytes of the first frame that hold the headers of its codec, which FFmpeg learns the pictures' form from."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a clip may be. Beyond it, a file is broken or hostile, or needs cutting first."""

    seconds: float = 24 * 3600.0
    frames: int = 24 * 3600 * 120
    """24 hours at 120 frames a second."""


LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Probe:
    """What is known of a clip before its frames are decoded."""

    codec: str
    width: int
    """Pixels as displayed: square, and turned as the file says."""
    height: int
    """Pixels as displayed: square, and turned as the file says."""
    coded_width: int
    """Pixels as decoded."""
    coded_height: int
    """Pixels as decoded."""
    rotation: int
    """Degrees counter-clockwise by which decoded frames are to be turned: 0, 90, 180 or 270."""
    mirrored: bool
    """Whether left and right of decoded frames change places before that."""
    pixel_format: str | None
    """FFmpeg's name; None if it cannot decode the clip."""
    bit_depth: int | None
    """Bits of one sample of the first plane."""
    transfer: int
    """Transfer characteristics by ITU-T H.273: 16 is PQ, 18 HLG, 2 unknown."""
    interlaced: bool
    has_audio: bool
    times: tuple[float, ...]
    """When each frame is shown, in seconds from the first, ascending."""
    seconds: float
    """Length of the clip, until its last frame is no longer shown."""

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self.times)

    @property
    def fps(self) -> float:
        """Average frames per second; of a single frame, 1."""
        return (self.frames - 1) / self.times[-1] if self.frames > 1 and self.times[-1] > 0 else 1.0

    @property
    def variable_fps(self) -> bool:
        """Whether some frames are shown longer than others."""
        intervals = [after - before for before, after in itertools.pairwise(self.times)]
        return bool(intervals) and max(intervals) - min(intervals) > JITTER_SECONDS


def probe(file: bytes | SpanFile, limits: Limits = LIMITS) -> Probe:
    """Describe a clip by all of its file.

    No more than the first frame is decoded, unless only the decoder tells the order and time of the frames.

    Raises:
        UnreadableClip: if there is no video in it, or it is beyond the limits.
    """

    def presentation_order() -> Sequence[int]:
        with _open(file) as (container, stream):
            return decode_order(stream, container.demux(stream))

    start, size = _start(file)
    with _open(file) as (container, stream):
        track = read_track(file if isinstance(file, bytes) else cast(BinaryIO, file), stream)
        check_size(*_displayed(stream, track, UPRIGHT))
        given = container.demux(stream)
        head: list[Packet[VideoStream]] = []
        turn = track.orientation or UPRIGHT
        if turn == UPRIGHT:  # else the container's goes before the stream's own
            head, turn = first_orientation(stream, given)
        examined = samples_to_examine(container, stream, size)
        packets = read_packets(stream, itertools.chain(head, given), examined, most=_most(limits))
        whole = is_whole(start, size)
        return _described(container, stream, track, turn, packets, presentation_order, limits, is_whole=whole)


def probe_by_ranges(file: SpanFile, limits: Limits = LIMITS) -> Probe:
    """As ``probe``, from as few of the file's bytes as its container allows.

    The index of an MP4 or QuickTime file that is not fragmented tells every frame's time. FFmpeg reads the frames all
    the same when it goes through the index, and is given zeros.

    Raises:
        UnreadableClip: if there is no video in it, or it is beyond the limits.
    """
    file.ends()
    index = read_index(file)
    if index is None or index.fragmented:
        return probe(file, limits)
    file.hollow = True
    try:
        for _ in range(2):
            with _open(file) as (container, stream):
                if not stream.frames or not stream.index_entries or stream.id not in index.tracks:
                    break
                track = index.tracks[stream.id]
                check_size(*_displayed(stream, track, UPRIGHT))
                examined = samples_to_examine(container, stream, file.span.size)
                if examined is None:
                    break
                for entry in stream.index_entries:
                    if entry.pos in examined:
                        file.hold(entry.pos, entry.pos + entry.size)
                start, size = stream.index_entries[0].pos, stream.index_entries[0].size
                first = min(size, FIRST_BYTES)
                if file.holds(start, start + first) and stream.codec_context.pix_fmt:
                    track = with_own_orientation(track, stream, file.read_range(start, start + first))
                    turn = track.orientation or UPRIGHT
                    given = container.demux(stream)
                    packets = read_packets(stream, given, examined, has_payload=False, most=_most(limits))
                    return _described(container, stream, track, turn, packets, _needs_payload, limits)
            file.hold(start, start + size)  # FFmpeg wants to see the first frame
    except NeedsPayload:
        pass
    finally:
        file.hollow = False
    return probe(file, limits)


def _needs_payload() -> Sequence[int]:
    raise NeedsPayload


def _most(limits: Limits) -> int:
    """Packets that are read: enough to find a clip too long, whatever it has beside pictures."""
    return 4 * limits.frames + 4


def _start(file: bytes | SpanFile) -> tuple[bytes, int]:
    """The beginning of a file, and its size."""
    if isinstance(file, bytes):
        return file[:SEGMENT_BYTES], len(file)
    return file.read_range(0, min(SEGMENT_BYTES, file.span.size)), file.span.size


@contextmanager
def _open(file: bytes | SpanFile) -> Iterator[tuple[InputContainer, VideoStream]]:
    if isinstance(file, SpanFile):
        file.seek(0)
    with open_video(file if isinstance(file, bytes) else cast(BinaryIO, file)) as (container, stream):
        yield container, stream


def _displayed(stream: VideoStream, track: Track, turn: Orientation) -> tuple[int, int]:
    """Width and height of the stream's pictures as they are displayed."""
    context = stream.codec_context
    return displayed_size(context.width, context.height, track, stream.sample_aspect_ratio, turn)


def _described(
    container: InputContainer,
    stream: VideoStream,
    track: Track,
    turn: Orientation,
    packets: Packets,
    presentation_order: Callable[[], Sequence[int]],
    limits: Limits,
    *,
    is_whole: bool = True,
) -> Probe:
    context = stream.codec_context
    timeline = build_timeline(container, stream, packets, presentation_order, is_whole=is_whole)
    width, height = _displayed(stream, track, turn)
    found = Probe(
        codec=context.codec.canonical_name,
        width=width,
        height=height,
        coded_width=context.width,
        coded_height=context.height,
        rotation=turn.rotation,
        mirrored=turn.mirrored,
        pixel_format=context.pix_fmt,
        bit_depth=context.format.components[0].bits if context.format else None,
        transfer=context.color_trc,
        interlaced=context.field_order in INTERLACED,
        has_audio=any(other.type == "audio" for other in container.streams),
        times=timeline.times,
        seconds=timeline.end,
    )
    if found.frames > limits.frames or found.seconds > limits.seconds:
        raise UnreadableClip(
            "too_long",
            f"the clip is above the limits of {limits.seconds / 3600:g} hours and {limits.frames} frames: cut it",
        )
    return found
