"""Cutting: a file with one window of a clip, copied from the clip's stream or encoded anew, and then proved."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from enum import StrEnum
from fractions import Fraction
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, cast

import av
import numpy as np
from av import Packet, VideoFrame
from av.container import OutputContainer
from av.stream import Discard
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from av.video.stream import VideoStream

from caption_assets.errors import UnreadableClip
from caption_assets.video.boxes import read_movie_box
from caption_assets.video.container import (
    DECODER_OPTIONS,
    FFMPEG_ERRORS,
    decoder,
    ffmpeg_message,
    open_video,
    read_track,
    translate_ffmpeg_errors,
)
from caption_assets.video.cut_audio import AudioCut
from caption_assets.video.cut_plan import CutPlan
from caption_assets.video.decode import ClipDecoder
from caption_assets.video.fields import INTERLACED
from caption_assets.video.frame_sampling import frames_shown_at
from caption_assets.video.h264 import IDR
from caption_assets.video.nal_units import length_size, unit_type, units
from caption_assets.video.payload import HEVC_SLICES, PacketContent
from caption_assets.video.picture_stream import PictureStream
from caption_assets.video.primaries import WIDE_PRIMARIES
from caption_assets.video.scaler import FLAGS
from caption_assets.video.timeline import MISSING, numbered
from caption_assets.video.tone import is_hdr
from caption_assets.video.track import NO_CROP, OpenFile

MP4_CODECS = frozenset({"h264", "hevc", "av1", "vp9", "mpeg4"})
"""Codecs, by FFmpeg's names, whose streams are copied to MP4."""
PLAIN_FORMATS = frozenset({"yuv420p", "yuvj420p", "yuv420p10le"})
"""Pixel formats of streams that are copied: those that trainers' decoders read."""
H264_SLICES = range(1, 6)
"""Types of H.264 NAL units with a part of a picture (table 7-1)."""
ENCODER = "libx264"
ENCODER_OPTIONS = {"crf": "18", "preset": "veryfast", "x264-params": "open-gop=0:threads=1:log-level=none"}
"""Visually lossless; slower presets take a multiple of the time for files that are 10 % smaller."""
GROUP_SECONDS = 2
"""Maximum length of a group of pictures, so that a trainer reaches any frame by decoding few others."""
MUXER_OPTIONS = {"movflags": "faststart"}
"""Options of FFmpeg's MP4 muxer: the index precedes the pictures, so that a file can be read from its start."""


class CutMethod(StrEnum):
    """How a file was made."""

    AS_IS = "as_is"
    """The clip's own file is the result: nothing was written."""
    COPIED = "copied"
    """The clip's packets were copied."""
    ENCODED = "encoded"


class CutMismatch(UnreadableClip):
    """A written file whose frames are not those of the window."""


def _mismatch(message: str) -> CutMismatch:
    return CutMismatch("cut_mismatch", f"the file that was cut is wrong: {message}")


class WindowCutter:
    """Cuts windows out of one clip. Windows that are cut in order take a single pass over the clip.

    Args:
        open_file: opens the clip's file; each call returns a file of its own.

    Raises:
        UnreadableClip: if there is no video in it.
    """

    def __init__(self, open_file: Callable[[], BinaryIO]) -> None:
        self._open_file = open_file
        self._opened: ClipDecoder | None = None
        self._stack = ExitStack()
        self._position = 0
        self._open()

    def close(self) -> None:
        """Close the clip's files."""
        if self._opened:
            self._opened.close()
        self._stack.close()

    def cut(self, plan: CutPlan, path: Path) -> Iterator[CutMethod | None]:
        """Write a window's file and prove it: its frames are the window's in number and, if copied, in content.

        Args:
            plan: the file to make.
            path: where to write it.

        Yields:
            None while it works, so that the caller can interrupt it, and how the file was made at the end.

        Raises:
            UnreadableClip: if the window cannot be decoded, or its stream cannot be copied and must not be encoded.
            CutMismatch: if the file is wrong.
        """
        if self._is_finished_file(plan):
            yield CutMethod.AS_IS
            return
        self._check_frames(plan)
        if plan.as_stored:
            self._copy_as_stored(plan, path)
            yield CutMethod.COPIED
            return
        packets = self._exact_packets(plan)
        if packets is not None:
            try:
                self._copy(plan, packets, path, plan.frames)
            except (CutMismatch, *FFMPEG_ERRORS):
                path.unlink(missing_ok=True)  # such a window is encoded
            else:
                yield CutMethod.COPIED
                return
        yield from self._encode(plan, path)
        yield CutMethod.ENCODED

    def _open(self) -> None:
        self._stack.close()
        self._file = self._stack.enter_context(self._open_file())
        self._container, self._stream = self._stack.enter_context(open_video(self._file))
        self._track = read_track(self._file, self._stream)
        for other in self._container.streams:
            if other is not self._stream:
                other.discard = Discard.all
        self._packets = iter(numbered(self._container.demux(self._stream)))
        self._position = 0

    @property
    def _decoder(self) -> ClipDecoder:
        """The clip's decoder, which reads the whole clip when it is first needed."""
        self._opened = self._opened or ClipDecoder(self._open_file)
        return self._opened

    def _check_frames(self, plan: CutPlan) -> None:
        """Refuse a clip with other frames than its manifest row states."""
        found = len(self._decoder.timeline.times)
        if found < plan.end_frame or (plan.is_whole_clip and found != plan.end_frame):
            raise UnreadableClip("damaged", f"the clip has {found} frames, but its window ends at {plan.end_frame}")

    @property
    def _codec(self) -> str:
        return self._stream.codec_context.codec.canonical_name

    @property
    def _is_plain(self) -> bool:
        """Whether the stream's decoded pictures are what a player shows, and trainers' decoders read them."""
        context, stream = self._stream.codec_context, self._stream
        return (
            self._codec in MP4_CODECS
            and context.pix_fmt in PLAIN_FORMATS
            and context.field_order not in INTERLACED
            and not is_hdr(context.color_trc)
            and context.color_primaries not in WIDE_PRIMARIES
            and stream.sample_aspect_ratio in (None, 0, 1)
            and self._track.crop == NO_CROP
            and decoder(stream) is context  # otherwise it has transparency
        )

    def _can_copy(self, plan: CutPlan) -> bool:
        context = self._stream.codec_context
        return plan.can_copy and self._is_plain and (context.width, context.height) == (plan.width, plan.height)

    def _is_finished_file(self, plan: CutPlan) -> bool:
        """Whether the clip's own file has exactly what the window's file must have.

        Its manifest row has proved its frames. If its index lists as many samples, each is one of them.
        """
        streams = self._container.streams
        if not plan.is_whole_clip or self._stream.frames != plan.frames or not self._can_copy(plan):
            return False
        ranges = OpenFile(self._file)
        head, movie = ranges.read_range(0, 12), read_movie_box(ranges)
        audio = len(streams.audio)
        return (
            head[4:8] == b"ftyp"
            and head[8:12] != b"qt  "
            and movie is not None
            and not movie.fragmented
            and len(streams) == 1 + audio
            and audio <= (1 if plan.audio else 0)
        )

    def _exact_packets(self, plan: CutPlan) -> range | None:
        """The packets that hold exactly the window's frames and begin at a keyframe; None if there are none."""
        packets = self._decoder.packets
        if not self._can_copy(plan) or not packets.can_start_at_any_keyframe:
            return None
        sources = self._decoder.timeline.sources[plan.start_frame : plan.end_frame]
        found = range(min(sources), max(sources) + 1)
        is_exact = sorted(sources) == list(found) and sources[0] == found.start and found.start in packets.keyframes
        is_proven = all(packets.contents[number] == PacketContent.PICTURE for number in found)
        return found if is_exact and is_proven else None

    def _copy_as_stored(self, plan: CutPlan, path: Path) -> None:
        if self._codec not in MP4_CODECS:
            raise UnreadableClip(
                "codec", f"MP4 files do not have streams of {self._codec}: set CAPTION_EXPORT_CUT=exact"
            )
        indices = range(plan.start_frame, plan.end_frame)
        sources = [self._decoder.timeline.sources[index] for index in indices]
        first = min(self._decoder.first_packet(indices), *sources)
        with translate_ffmpeg_errors():
            self._copy(plan, range(first, max(sources) + 1), path, None)

    def _copy(self, plan: CutPlan, packets: range, path: Path, frames: int | None) -> None:
        """Copy packets and prove the file.

        Args:
            plan: the file.
            packets: numbers of the packets.
            path: where to write it.
            frames: number of frames that the file must have; None if others may follow the window's.
        """
        timeline = self._decoder.timeline
        shown = timeline.sources[plan.start_frame : plan.end_frame]
        times = self._presentation_times(plan, packets, shown[0])
        ascending = sorted(times)
        delay = max(0, *(before - after for before, after in zip(ascending, times, strict=True)))
        ends = dict(itertools.pairwise(ascending))
        last = max(round(1 / (plan.fps * cast(Fraction, self._stream.time_base))), 1)
        keyframes = set(self._decoder.packets.keyframes)
        digest = PictureDigest(self._stream)
        with av.open(str(path), "w", format="mp4", options=dict(MUXER_OPTIONS)) as output:
            stream = output.add_stream_from_template(self._stream, opaque=True)
            stream.time_base = self._stream.time_base
            self._add_audio(output, plan)
            for number, packet in self._take(packets):
                digest.add(packet)
                if number == packets.start and frames is not None and not _is_closed(self._stream, packet):
                    raise _mismatch("it does not begin a closed group of pictures")
                time = times[number - packets.start]
                packet.pts, packet.dts = time, ascending[number - packets.start] - delay
                packet.duration = ends.get(time, time + last) - time
                packet.is_keyframe = number in keyframes  # the container's flags may be wrong
                packet.stream = stream
                output.mux(packet)
        self._prove_copy(path, [number - packets.start for number in shown], frames, digest)

    def _presentation_times(self, plan: CutPlan, packets: range, first: int) -> list[int]:
        """Timestamp of each packet in ticks, from the window's first frame on."""
        stamps = self._decoder.timeline.timestamps
        times = [stamps[number] for number in packets]
        if MISSING in times or len(set(times)) < len(times):
            raise _mismatch("packets have no timestamps of their own")
        return [time - stamps[first] for time in times]

    def _take(self, packets: range) -> Iterator[tuple[int, Packet[VideoStream]]]:
        if self._position > packets.start:
            self._open()
        for number, packet in self._packets:
            self._position = number + 1
            if number in packets:
                yield number, packet
            if self._position >= packets.stop:
                return
        raise UnreadableClip("damaged", "the file has fewer packets than before")

    def _prove_copy(self, path: Path, shown: Sequence[int], frames: int | None, expected: PictureDigest) -> None:
        """Compare a copy with the packets that were copied.

        Raises:
            CutMismatch: if they differ.
        """
        copied = PictureStream(lambda: path.open("rb"), decodes_all=True)
        try:
            timeline, _, _ = copied.read_all()
        finally:
            copied.close()
        found = list(timeline.sources)
        if frames is not None and len(found) != frames:
            raise _mismatch(f"it has {len(found)} frames, and the window {frames}")
        if found[: len(shown)] != list(shown):
            raise _mismatch("its frames are in another order")
        with path.open("rb") as file, open_video(file) as (container, stream):
            digest = PictureDigest(stream)
            for _, packet in numbered(container.demux(stream)):
                digest.add(packet)
        if digest.value != expected.value:
            raise _mismatch("its pictures are not those of the clip")
        with path.open("rb") as file, open_video(file) as (container, stream):
            first = next(container.decode(stream), None)
        if first is None or first.is_corrupt:
            raise _mismatch("its first picture cannot be decoded")

    def _encode(self, plan: CutPlan, path: Path) -> Iterator[None]:
        try:
            with av.open(str(path), "w", format="mp4", options=dict(MUXER_OPTIONS)) as output:
                stream = _add_encoder(output, plan)
                self._add_audio(output, plan)
                number = 0
                for picture in self._decoder.pictures(self._indices(plan), (plan.height, plan.width)):
                    if picture is None:
                        yield None
                        continue
                    frame = _to_yuv(picture.pixels)
                    frame.pts, frame.time_base = number, 1 / plan.fps
                    number += 1
                    output.mux(stream.encode(frame))
                    yield None
                output.mux(stream.encode(None))
        except FFMPEG_ERRORS as error:
            raise UnreadableClip("not_encoded", f"the window cannot be encoded: {ffmpeg_message(error)}") from error
        yield from _prove_encoded(path, plan)

    def _indices(self, plan: CutPlan) -> Sequence[int]:
        """The clip's frame for each frame of the file."""
        if not plan.resampled:
            return range(plan.start_frame, plan.start_frame + plan.frames)
        times = self._decoder.timeline.times[plan.start_frame : plan.end_frame]
        at = [times[0] + float(number / plan.fps) for number in range(plan.frames)]
        return [plan.start_frame + index for index in frames_shown_at(times, at)]

    def _add_audio(self, output: OutputContainer, plan: CutPlan) -> None:
        """Write the window's audio, if the file has any. The muxer interleaves it with the pictures that follow."""
        if not plan.audio:
            return
        number = self._decoder.timeline.sources[plan.start_frame]
        pts = self._decoder.packets.pts[number]  # not that of the timeline, which moves concatenated recordings
        start = pts if pts != MISSING else self._decoder.timeline.timestamps[number]
        AudioCut(self._open_file, float(start * cast(Fraction, self._stream.time_base)), plan.seconds).write(output)


class PictureDigest:
    """A digest of the coded pictures of a stream's packets, whatever its container.

    Containers differ in what surrounds the pictures of H.264 and H.265: start codes, parameter sets, delimiters.
    """

    def __init__(self, stream: VideoStream) -> None:
        context = stream.codec_context
        self._codec = context.codec.canonical_name
        self._slices = {"h264": H264_SLICES, "hevc": HEVC_SLICES}.get(self._codec)
        self._lengths = length_size(self._codec, context.extradata) if self._slices else None
        self._hash = blake2b(digest_size=16)

    def add(self, packet: Packet[VideoStream]) -> None:
        """Add a packet."""
        data = memoryview(packet)
        if self._slices is None:
            self._hash.update(data)
            return
        for unit in units(data, self._lengths):
            if unit_type(self._codec, unit) in self._slices:
                self._hash.update(bytes(unit).rstrip(b"\0"))

    @property
    def value(self) -> bytes:
        """The digest."""
        return self._hash.digest()


def _is_closed(stream: VideoStream, keyframe: Packet[VideoStream]) -> bool:
    """Whether no picture after a keyframe may be predicted from one before it.

    Only in H.264 an intra picture allows it (recovery points, gradual refresh); its IDR pictures do not.
    """
    context = stream.codec_context
    if context.codec.canonical_name != "h264":
        return True
    lengths = length_size("h264", context.extradata)
    return any(unit_type("h264", unit) == IDR for unit in units(memoryview(keyframe), lengths))


def _add_encoder(output: OutputContainer, plan: CutPlan) -> VideoStream:
    group = max(round(GROUP_SECONDS * plan.fps), 1)
    options = {**ENCODER_OPTIONS, "g": str(group)}
    stream = cast(VideoStream, output.add_stream(ENCODER, rate=plan.fps, options=options))
    stream.width, stream.height, stream.pix_fmt = plan.width, plan.height, "yuv420p"
    context = stream.codec_context
    context.time_base = 1 / plan.fps
    context.thread_count = 1
    context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
    return stream


def _to_yuv(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> VideoFrame:
    """A picture as luma and chroma of BT.709."""
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    return frame.reformat(
        format="yuv420p",
        src_color_range=ColorRange.JPEG,
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        interpolation=FLAGS,
        threads=1,
    )


def _prove_encoded(path: Path, plan: CutPlan) -> Iterator[None]:
    """Decode a file and compare the number and size of its frames with the plan.

    Raises:
        CutMismatch: if they differ.
    """
    frames = 0
    with path.open("rb") as file, open_video(file) as (container, stream):
        stream.codec_context.options = {**DECODER_OPTIONS, "skip_loop_filter": "all"}  # pixels are not used
        for frame in container.decode(stream):
            if frame.is_corrupt or (frame.width, frame.height) != (plan.width, plan.height):
                raise _mismatch(f"frame {frames} is damaged, or not {plan.width}x{plan.height}")
            frames += 1
            yield None
    if frames != plan.frames:
        raise _mismatch(f"it has {frames} frames, and the window {plan.frames}")
