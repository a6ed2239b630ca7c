"""A resumable pass over a clip's packets that yields decoded pictures in presentation order."""

from __future__ import annotations

import io
import itertools
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from typing import BinaryIO, cast

from av import Packet, VideoFrame
from av.video.frame import PictureType
from av.video.stream import VideoStream

from caption_assets.video.container import (
    DECODER_OPTIONS,
    FFMPEG_ERRORS,
    decoder,
    ffmpeg_message,
    open_video,
    read_track,
    with_stream_orientation,
)
from caption_assets.video.decode_plan import needed_packets
from caption_assets.video.ebml import SEGMENT_BYTES, is_complete
from caption_assets.video.picture import Renderer
from caption_assets.video.references import ReferenceReader, References
from caption_assets.video.timeline import (
    Packets,
    Timeline,
    build_timeline,
    decoded_presentation_order,
    numbered,
    read_packets,
    samples_to_parse,
)

FIRST_BYTES = 4096
"""Bytes of the first packet that are searched for an orientation: it is stored before the picture."""
MAX_CACHED_BYTES = 64 << 20
"""Maximum size of a clip whose packets are cached when its timeline is built, in bytes."""
MAX_DECODER_DELAY = 64
"""Maximum number of packets to decode after the last wanted one to get its picture. Decoders delay at most 16 pictures,
each of two fields."""
STRICT_OPTIONS = {**DECODER_OPTIONS, "err_detect": "explode"}
"""FFmpeg's options for H.264 to report the errors that it finds. It still conceals what is missing; otherwise a slice
that ends early would leave parts of older pictures, and no picture would be marked as damaged."""


class PictureStream:
    """A decoder at a position within a clip.

    Args:
        open_file: opens the clip's file for this stream alone.
        decodes_all: whether to decode every picture; if not, unwanted non-reference pictures are skipped.
        references: the reference pictures, to skip those that no wanted picture needs. After an error (``error``),
            decode the clip without them.
    """

    def __init__(
        self, open_file: Callable[[], BinaryIO], *, decodes_all: bool, references: References | None = None
    ) -> None:
        self._open_file = open_file
        self.decodes_all = decodes_all
        self._references = references
        self._stack = ExitStack()
        self._pending: deque[VideoFrame] = deque()
        self._decoded_from: int | None = None
        self._skipped: set[int] = set()
        self.error: str | None = None
        """FFmpeg's message for the first packet that the decoder rejected."""
        self.latest: tuple[int, VideoFrame] | None = None
        """The last usable picture and the number of its frame. Set by the caller."""
        self.last_index = -1
        """The number of the last frame that was consumed. Set by the caller."""
        self.unconfirmed_keyframes: set[int] = set()
        """Numbers of the packets at which decoding began and that have not been decoded as keyframes yet."""
        self.position = 0
        """Number of the next packet."""
        self._packets: Iterator[tuple[int, Packet[VideoStream]]] = iter(())
        self._open()

    @property
    def codec(self) -> str:
        """FFmpeg's name of the clip's codec."""
        return self._stream.codec_context.codec.canonical_name

    def read_all(self) -> tuple[Timeline, Packets, References | None]:
        """The clip's timeline, packets and reference pictures. Call it before ``pictures``.

        The packets of a clip up to ``MAX_CACHED_BYTES`` are cached, so that it is read once.

        Raises:
            UnreadableClip: if the timestamps are uncertain.
        """

        def presentation_order() -> Sequence[int]:
            with self._open_file() as again, open_video(again) as (container, stream):
                return decoded_presentation_order(stream, container.demux(stream))

        cached: deque[Packet[VideoStream]] | None = deque()
        size = 0
        reader = ReferenceReader(self._stream)

        def caching() -> Iterator[Packet[VideoStream]]:
            nonlocal cached, size
            for _, packet in self._packets:
                size += packet.size
                if size > MAX_CACHED_BYTES:
                    cached = None
                if cached is not None:
                    cached.append(packet)
                reader.add(packet)
                yield packet

        with self._open_file() as file:
            head, length = file.read(SEGMENT_BYTES), file.seek(0, io.SEEK_END)
        parsed = samples_to_parse(self._container, self._stream, length)
        packets = read_packets(self._stream, caching(), parsed)
        complete = is_complete(head, length)
        timeline = build_timeline(self._container, self._stream, packets, presentation_order, is_complete=complete)
        if cached is None:
            self._open()
        else:
            self._packets = enumerate(_drained(cached))
        return timeline, packets, reader.references

    def renderer(self, size: tuple[int, int] | None) -> Renderer:
        """A renderer for the stream's pictures at a height and width; None for the display size of the clip."""
        return self._renderer.with_size(size)

    def close(self) -> None:
        """Close the file."""
        self._stack.close()

    def skip_references(self, references: References) -> None:
        """Skip reference pictures as well. Call it before ``pictures``; see ``__init__``."""
        self._references = references
        self._context.options = dict(STRICT_OPTIONS)

    def pictures(self, ranges: Sequence[range], wanted: Collection[int]) -> Iterator[VideoFrame]:
        """Decode ranges of packets. The ``pts`` of each picture is the number of its packet.

        After the last range, decoding continues until the caller stops, or for ``MAX_DECODER_DELAY`` packets. Pictures
        that the caller does not consume are kept for the next call. A range that continues the last one is not decoded
        again, unless it needs a picture that was skipped.

        Args:
            ranges: packets to decode, as ``plan.decode_ranges`` returns them.
            wanted: numbers of the packets that must not be skipped.

        Yields:
            The pictures in presentation order.
        """
        yield from self._take_pending()
        for decode_range in ranges:
            needed = needed_packets(self._references.packets, decode_range, wanted) if self._references else None
            if not self._continues(decode_range.start) or not self._skipped.isdisjoint(needed or ()):
                self._drain()
                yield from self._take_pending()
                self._seek(decode_range.start)
            while self.position < decode_range.stop and (packet := self._next()) is not None:
                is_wanted = packet.pts in wanted or packet.pts == self._decoded_from
                if needed is None or packet.pts in needed:
                    self._decode_packet(packet, is_wanted=is_wanted)
                else:
                    self._skip_packet(packet)
                yield from self._take_pending()
        for _ in range(MAX_DECODER_DELAY):
            if (packet := self._next()) is None:
                break
            if self._references is None or self._skipped.isdisjoint(self._references.packets[cast(int, packet.pts)]):
                self._decode_packet(packet, is_wanted=True)
            else:
                self._skip_packet(packet)
            yield from self._take_pending()
        if self._has_ended:
            self._drain()
            yield from self._take_pending()

    def return_frame(self, frame: VideoFrame) -> None:
        """Return a picture, to be yielded again by the next call."""
        self._pending.appendleft(frame)

    def _open(self) -> None:
        self._stack.close()
        file = self._stack.enter_context(self._open_file())
        self._container, self._stream = self._stack.enter_context(open_video(file))
        packets = iter(numbered(self._container.demux(self._stream)))
        first = list(itertools.islice(packets, 1))
        self._packets = itertools.chain(first, packets)
        sample = bytes(memoryview(first[0][1])[:FIRST_BYTES]) if first else b""
        track = with_stream_orientation(read_track(file, self._stream), self._stream, sample)
        self._renderer = Renderer(self._stream, track, None)
        self._context = decoder(self._stream)
        if self._references:
            self._context.options = dict(STRICT_OPTIONS)
        self.position = 0
        self._has_ended = False

    def _take_pending(self) -> Iterator[VideoFrame]:
        while self._pending:
            yield self._pending.popleft()

    def _continues(self, start: int) -> bool:
        """Whether decoding from a packet on continues the last range."""
        return self._decoded_from is not None and self._decoded_from <= start <= self.position

    def _seek(self, start: int) -> None:
        """Move to the packet at which decoding begins."""
        if start < self.position:
            self._open()
        while self.position < start and self._next() is not None:
            pass
        self._decoded_from = start
        self._skipped.clear()
        if start:
            self.unconfirmed_keyframes.add(start)

    def _next(self) -> Packet[VideoStream] | None:
        """The next packet; None at the end."""
        found = next(self._packets, None)
        if found is None:
            self._has_ended = True
            return None
        number, packet = found
        packet.pts = packet.dts = number
        self.position = number + 1
        return packet

    def _decode_packet(self, packet: Packet[VideoStream], *, is_wanted: bool) -> None:
        if not packet.size:  # a repeated picture: the decoder would interpret the empty packet as the end of the stream
            return
        self._context.skip_frame = "DEFAULT" if is_wanted or self.decodes_all else "NONREF"
        self._decode(packet)

    def _skip_packet(self, packet: Packet[VideoStream]) -> None:
        assert self._references is not None
        self._skipped.add(cast(int, packet.pts))
        try:
            empty = self._references.empty(packet)
        except FFMPEG_ERRORS as error:  # a damaged header
            self.error = self.error or ffmpeg_message(error)
            return
        if empty is not None:
            self._decode_packet(empty, is_wanted=True)

    def _drain(self) -> None:
        """Get the pictures that the decoder delays, and reset it."""
        if self._decoded_from is None:
            return
        self._decode(None)
        self._context.flush_buffers()  # otherwise the decoder rejects packets after the end of the stream
        self._decoded_from = None

    def _decode(self, packet: Packet[VideoStream] | None) -> None:
        try:
            frames = self._context.decode(packet)
        except FFMPEG_ERRORS as error:
            self.error = self.error or ffmpeg_message(error)
            return
        for frame in frames:
            if frame.pts is None or frame.pts in self._skipped:
                continue
            if frame.key_frame and frame.pict_type == PictureType.I:
                self.unconfirmed_keyframes.discard(frame.pts)
            self._pending.append(frame)


def _drained(packets: deque[Packet[VideoStream]]) -> Iterator[Packet[VideoStream]]:
    """The packets, each removed from the queue when it is yielded, so that its memory is freed."""
    while packets:
        yield packets.popleft()
