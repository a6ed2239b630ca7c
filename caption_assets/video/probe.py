"""The probe: a clip's codec, dimensions, length and frame times, from its container."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, cast

from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard
from av.video.stream import VideoStream

from caption_assets.errors import UnreadableClip
from caption_assets.store.span import Span
from caption_assets.store.span_file import SpanFile
from caption_assets.video.boxes import read_movie_box
from caption_assets.video.container import (
    check_size,
    first_orientation,
    open_video,
    read_track,
    with_stream_orientation,
)
from caption_assets.video.display import UPRIGHT, Orientation
from caption_assets.video.ebml import SEGMENT_BYTES, is_complete
from caption_assets.video.fields import INTERLACED
from caption_assets.video.picture import displayed_size
from caption_assets.video.timeline import (
    NeedsPayload,
    Packets,
    build_timeline,
    decoded_presentation_order,
    read_packets,
    samples_to_parse,
)
from caption_assets.video.track import Track

JITTER_SECONDS = 0.002
"""Maximum difference between the frame intervals of a clip of constant rate: containers round timestamps to ticks of
1 ms (Matroska, FLV) or 1/600 s (QuickTime), so that intervals are up to one tick longer or shorter."""
FIRST_BYTES = 4096
"""Bytes of the first frame that contain its codec's headers, from which FFmpeg takes the pixel format."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Maximum length of a clip. A longer file is damaged or malicious, or must be cut first."""

    seconds: float = 24 * 3600.0
    frames: int = 24 * 3600 * 120
    """24 hours at 120 frames per second."""


LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Probe:
    """The properties of a clip, found without decoding all of it."""

    codec: str
    """FFmpeg's name."""
    width: int
    """Width as displayed, in square pixels, after rotation."""
    height: int
    """Height as displayed, in square pixels, after rotation."""

    rotation: int
    """Rotation to apply to decoded frames, in degrees counter-clockwise: 0, 90, 180 or 270."""
    mirrored: bool
    """Whether to mirror decoded frames horizontally before the rotation."""
    pixel_format: str | None
    """FFmpeg's name; None if it cannot decode the clip."""
    bit_depth: int | None
    """Bits per sample of the first plane."""

    interlaced: bool
    has_audio: bool
    times: tuple[float, ...]
    """Presentation time of each frame, in seconds from the first, ascending."""
    seconds: float
    """Length of the clip: the end of its last frame's presentation, in seconds."""

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self.times)

    @property
    def fps(self) -> float:
        """Average frames per second; 1 for a single frame."""
        return (self.frames - 1) / self.times[-1] if self.frames > 1 and self.times[-1] > 0 else 1.0

    @property
    def variable_fps(self) -> bool:
        """Whether the frame rate varies."""
        intervals = [after - before for before, after in itertools.pairwise(self.times)]
        return bool(intervals) and max(intervals) - min(intervals) > JITTER_SECONDS


def probe(file: bytes | SpanFile, limits: Limits = LIMITS) -> Probe:
    """Probe a clip by reading all of its file.

    Only the first frame is decoded, unless the packets do not prove order and timestamps of the frames.

    Raises:
        UnreadableClip: if there is no video in it, or it exceeds the limits.
    """

    def presentation_order() -> Sequence[int]:
        with _open(file) as (container, stream):
            return decoded_presentation_order(stream, container.demux(stream))

    start, size = _start(file)
    with _open(file) as (container, stream):
        track = read_track(file if isinstance(file, bytes) else cast(BinaryIO, file), stream)
        check_size(*_displayed_size(stream, track, UPRIGHT))
        demuxed = container.demux(stream)
        head: list[Packet[VideoStream]] = []
        orientation = track.orientation or UPRIGHT
        if orientation == UPRIGHT:  # otherwise the container's orientation takes precedence over the stream's
            head, orientation = first_orientation(stream, demuxed)
        parsed = samples_to_parse(container, stream, size)
        packets = read_packets(stream, itertools.chain(head, demuxed), parsed, max_packets=_max_packets(limits))
        complete = is_complete(start, size)
        return _build_probe(
            container, stream, track, orientation, packets, presentation_order, limits, is_complete=complete
        )


def probe_span(span: Span) -> Probe:
    """Probe the clip in a range of bytes; see ``probe_by_ranges``. A job for a worker process."""
    return probe_by_ranges(SpanFile(span))


def probe_by_ranges(file: SpanFile, limits: Limits = LIMITS) -> Probe:
    """Probe a clip like ``probe``, but read as few of its bytes as its container allows.

    The index of an MP4 or QuickTime file that is not fragmented contains the timestamps of all frames. FFmpeg still
    reads the payloads when it demuxes; ``SpanFile`` returns zeros for them.

    Raises:
        UnreadableClip: if there is no video in it, or it exceeds the limits.
    """
    file.prefetch_ends()
    index = read_movie_box(file)
    if index is None or index.fragmented:
        return probe(file, limits)
    file.zero_fill = True
    try:
        for _ in range(2):
            with _open(file) as (container, stream):
                if not stream.frames or not stream.index_entries or stream.id not in index.tracks:
                    break
                track = index.tracks[stream.id]
                check_size(*_displayed_size(stream, track, UPRIGHT))
                parsed = samples_to_parse(container, stream, file.span.size)
                if parsed is None:
                    break
                for entry in stream.index_entries:
                    if entry.pos in parsed:
                        file.prefetch(entry.pos, entry.pos + entry.size)
                start, size = stream.index_entries[0].pos, stream.index_entries[0].size
                first = min(size, FIRST_BYTES)
                if file.is_cached(start, start + first) and stream.codec_context.pix_fmt:
                    track = with_stream_orientation(track, stream, file.read_range(start, start + first))
                    orientation = track.orientation or UPRIGHT
                    for other in container.streams:
                        if other is not stream:
                            other.discard = Discard.all  # reading their samples takes a tenth of the probe's time
                    demuxed = container.demux(stream)
                    packets = read_packets(stream, demuxed, parsed, has_payload=False, max_packets=_max_packets(limits))
                    return _build_probe(container, stream, track, orientation, packets, _needs_payload, limits)
            file.prefetch(start, start + size)  # FFmpeg needs the whole first frame
    except NeedsPayload:
        pass
    finally:
        file.zero_fill = False
    return probe(file, limits)


def _needs_payload() -> Sequence[int]:
    raise NeedsPayload


def _max_packets(limits: Limits) -> int:
    """Maximum number of packets to read: enough to detect a clip that is too long, even if some have no picture."""
    return 4 * limits.frames + 4


def _start(file: bytes | SpanFile) -> tuple[bytes, int]:
    """The first bytes of a file, and its size."""
    if isinstance(file, bytes):
        return file[:SEGMENT_BYTES], len(file)
    return file.read_range(0, min(SEGMENT_BYTES, file.span.size)), file.span.size


@contextmanager
def _open(file: bytes | SpanFile) -> Iterator[tuple[InputContainer, VideoStream]]:
    if isinstance(file, SpanFile):
        file.seek(0)
    with open_video(file if isinstance(file, bytes) else cast(BinaryIO, file)) as (container, stream):
        yield container, stream


def _displayed_size(stream: VideoStream, track: Track, orientation: Orientation) -> tuple[int, int]:
    """Width and height of the stream's pictures as displayed."""
    context = stream.codec_context
    return displayed_size(context.width, context.height, track, stream.sample_aspect_ratio, orientation)


def _build_probe(
    container: InputContainer,
    stream: VideoStream,
    track: Track,
    orientation: Orientation,
    packets: Packets,
    presentation_order: Callable[[], Sequence[int]],
    limits: Limits,
    *,
    is_complete: bool = True,
) -> Probe:
    context = stream.codec_context
    timeline = build_timeline(container, stream, packets, presentation_order, is_complete=is_complete)
    width, height = _displayed_size(stream, track, orientation)
    found = Probe(
        codec=context.codec.canonical_name,
        width=width,
        height=height,
        rotation=orientation.rotation,
        mirrored=orientation.mirrored,
        pixel_format=context.pix_fmt,
        bit_depth=context.format.components[0].bits if context.format else None,
        interlaced=context.field_order in INTERLACED,
        has_audio=any(other.type == "audio" for other in container.streams),
        times=timeline.times,
        seconds=timeline.end,
    )
    if found.frames > limits.frames or found.seconds > limits.seconds:
        raise UnreadableClip(
            "too_long",
            f"the clip has {found.frames:,} frames and lasts {found.seconds / 3600:.2f} hours, above the limits of "
            f"{limits.frames:,} frames and {limits.seconds / 3600:g} hours: cut it into shorter clips",
        )
    return found
