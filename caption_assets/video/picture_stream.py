"""Decoded pictures of a clip in presentation order, from one pass over its packets that can pause and go on."""

from __future__ import annotations

import io
import itertools
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from typing import BinaryIO

from av import Packet, VideoFrame
from av.video.frame import PictureType
from av.video.stream import VideoStream

from caption_assets.video.container import BROKEN, decoder, detail, open_video, read_track, with_own_orientation
from caption_assets.video.picture import Renderer
from caption_assets.video.timeline import (
    SEGMENT_BYTES,
    Packets,
    Timeline,
    build_timeline,
    decode_order,
    is_whole,
    numbered,
    read_packets,
    samples_to_examine,
)

FIRST_BYTES = 4096
"""Bytes of the first packet that may ask for an orientation: they stand before its picture."""
KEPT_BYTES = 64 << 20
"""Bytes of a clip whose packets are kept from the first time that they are read."""
OVERSHOOT = 64
"""Packets that are fed beyond the last wanted one, until its picture appears. Decoders hold back 16 pictures at most,
each in two fields."""


class PictureStream:
    """A decoder on its way through a clip.

    Args:
        open_file: opens the clip's file for this stream alone.
        is_thorough: whether to decode every picture. Else those are left out that are not wanted and that no other is
            predicted from.
    """

    def __init__(self, open_file: Callable[[], BinaryIO], *, is_thorough: bool) -> None:
        self._open_file = open_file
        self.is_thorough = is_thorough
        self._stack = ExitStack()
        self._pending: deque[VideoFrame] = deque()
        self._fed_from: int | None = None
        self.error: str | None = None
        """FFmpeg's words for the first packet that the decoder refused."""
        self.latest: tuple[int, VideoFrame] | None = None
        """The last picture that was used, and the number of its frame; for whoever takes pictures out."""
        self.last_rank = -1
        """The number of the last frame that was taken out; for whoever takes pictures out."""
        self.entries: set[int] = set()
        """Numbers of the packets at which decoding began anew, and that have not come out as keyframes yet."""
        self.position = 0
        """Number of the next packet."""
        self._packets: Iterator[tuple[int, Packet[VideoStream]]] = iter(())
        self._open()

    @property
    def codec(self) -> str:
        """FFmpeg's name of the clip's codec."""
        return self._stream.codec_context.codec.canonical_name

    def read_all(self) -> tuple[Timeline, Packets]:
        """The clip's timeline and packets; to be called before pictures are taken out.

        Of a clip up to ``KEPT_BYTES`` the packets are kept, so that it need not be read again.

        Raises:
            UnreadableClip: if the time of its pictures is not certain.
        """

        def presentation_order() -> Sequence[int]:
            with self._open_file() as again, open_video(again) as (container, stream):
                return decode_order(stream, container.demux(stream))

        kept: deque[Packet[VideoStream]] | None = deque()
        size = 0

        def remembered() -> Iterator[Packet[VideoStream]]:
            nonlocal kept, size
            for _, packet in self._packets:
                size += packet.size
                if size > KEPT_BYTES:
                    kept = None
                if kept is not None:
                    kept.append(packet)
                yield packet

        with self._open_file() as file:
            head, length = file.read(SEGMENT_BYTES), file.seek(0, io.SEEK_END)
        examined = samples_to_examine(self._container, self._stream, length)
        packets = read_packets(self._stream, remembered(), examined)
        whole = is_whole(head, length)
        timeline = build_timeline(self._container, self._stream, packets, presentation_order, is_whole=whole)
        if kept is None:
            self._open()
        else:
            self._packets = enumerate(_emptied(kept))
        return timeline, packets

    def renderer(self, size: tuple[int, int] | None) -> Renderer:
        """Renders this pass's pictures at a size: height and width, or None for that at which the clip is displayed."""
        return self._renderer.sized(size)

    def close(self) -> None:
        """Close the file."""
        self._stack.close()

    def pictures(self, runs: Sequence[range], wanted: Collection[int]) -> Iterator[VideoFrame]:
        """Pictures in presentation order; ``pts`` of each is the number of the packet that it came from.

        It goes on behind the last run until nothing more is taken out, or ``OVERSHOOT`` packets. What is not taken out
        is kept for the next call. A run that continues the last one is not decoded again.

        Args:
            runs: packets to decode, as ``plan.runs`` returns them.
            wanted: numbers of the packets that must not be left out.
        """
        yield from self._taken()
        for run in runs:
            if self._fed_from is None or not self._fed_from <= run.start <= self.position:
                self._drain()
                yield from self._taken()
                self._enter(run.start)
            while self.position < run.stop and (packet := self._next()) is not None:
                is_wanted = packet.pts in wanted or packet.pts == self._fed_from
                self._feed(packet, is_wanted=is_wanted)
                yield from self._taken()
        for _ in range(OVERSHOOT):
            if (packet := self._next()) is None:
                break
            self._feed(packet, is_wanted=True)
            yield from self._taken()
        if self._has_ended:
            self._drain()
            yield from self._taken()

    def put_back(self, frame: VideoFrame) -> None:
        """Keep a picture that was taken out for the next call."""
        self._pending.appendleft(frame)

    def _open(self) -> None:
        self._stack.close()
        file = self._stack.enter_context(self._open_file())
        self._container, self._stream = self._stack.enter_context(open_video(file))
        packets = iter(numbered(self._container.demux(self._stream)))
        first = list(itertools.islice(packets, 1))
        self._packets = itertools.chain(first, packets)
        sample = bytes(memoryview(first[0][1])[:FIRST_BYTES]) if first else b""
        track = with_own_orientation(read_track(file, self._stream), self._stream, sample)
        self._renderer = Renderer(self._stream, track, None)
        self._context = decoder(self._stream)
        self.position = 0
        self._has_ended = False

    def _taken(self) -> Iterator[VideoFrame]:
        while self._pending:
            yield self._pending.popleft()

    def _enter(self, start: int) -> None:
        """Go to a packet, at which decoding begins."""
        if start < self.position:
            self._open()
        while self.position < start and self._next() is not None:
            pass
        self._fed_from = start
        if start:
            self.entries.add(start)

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

    def _feed(self, packet: Packet[VideoStream], *, is_wanted: bool) -> None:
        if not packet.size:  # it repeats a picture; to the decoder it would be the end of the stream
            return
        self._context.skip_frame = "DEFAULT" if is_wanted or self.is_thorough else "NONREF"
        self._decode(packet)

    def _drain(self) -> None:
        """Get what the decoder holds back; it begins anew after that."""
        if self._fed_from is None:
            return
        self._decode(None)
        self._context.flush_buffers()  # else it would take the stream for ended
        self._fed_from = None

    def _decode(self, packet: Packet[VideoStream] | None) -> None:
        try:
            frames = self._context.decode(packet)
        except BROKEN as error:
            self.error = self.error or detail(error)
            return
        for frame in frames:
            if frame.pts is None:
                continue
            if frame.key_frame and frame.pict_type == PictureType.I:
                self.entries.discard(frame.pts)
            self._pending.append(frame)


def _emptied(packets: deque[Packet[VideoStream]]) -> Iterator[Packet[VideoStream]]:
    """Packets that are let go of as they are taken."""
    while packets:
        yield packets.popleft()
