"""A clip's container, opened from its bytes alone: FFmpeg cannot open other files."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from typing import BinaryIO, NoReturn

import av
from av import Packet, VideoFrame
from av.container import InputContainer
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from caption_assets.errors import UnreadableClip
from caption_assets.video import boxes, ebml, sei
from caption_assets.video.display import UPRIGHT, Orientation, frame_orientation
from caption_assets.video.matrix import UNSUPPORTED_MATRICES
from caption_assets.video.scrambling import asf_protection, is_scrambled, is_scrambled_program
from caption_assets.video.signature import HEAD_BYTES, file_kind, still_image_name
from caption_assets.video.track import DEFAULT_TRACK, ByteRanges, OpenFile, Track

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,gif,apng,mxf,nut,dv,ivf,obu,yuv4mpegpipe,"
    "h264,hevc,m4v,mpegvideo"
)
"""Containers and raw streams that may be opened. Others are refused: an ffconcat list would make FFmpeg open local
files."""

STILL_CODECS = frozenset({"mjpeg", "png", "bmp", "tiff", "webp", "gif", "jpeg2000", "targa"})
"""Codecs, by FFmpeg's names, of a track that is a cover image if the file has another video track."""
NOT_SHOWN = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image | Disposition.dependent
"""Dispositions of video tracks that players do not play."""
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Decoders of WebM's transparency, which is stored in side data; FFmpeg's own decoders ignore it."""

MAX_PIXELS = 8192 * 8192
"""Maximum number of pixels of a frame: a file of 64 KB can declare 16k x 16k, which takes 1.2 GB of memory."""

MAX_SIDE = 16384
"""Maximum number of pixels along one side: the limit of H.264 levels and of most decoders."""

DECODER_OPTIONS = {"max_pixels": str(MAX_PIXELS), "threads": "1"}
"""Options of every decoder. Each has one thread: decoding clips in parallel is faster than threads within a clip (2.30
against 1.53 clips a second)."""

MAX_PACKETS_TO_PICTURE = 600
"""Maximum number of packets to decode to get the first picture: 20 s, as long as the longest groups of pictures in
broadcasts and surveillance."""

FFMPEG_ERRORS = (av.FFmpegError, OSError, ValueError, IndexError)
"""Errors that PyAV raises for damaged files: its own, and built-in ones while opening and demuxing."""


@contextmanager
def open_video(file: bytes | BinaryIO) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a clip and yield its container and the video stream that players play.

    Args:
        file: the clip's bytes, or a seekable binary file.

    Raises:
        UnreadableClip: if FFmpeg finds no container or no video in it, or fails within the block.
    """
    opened = BytesIO(file) if isinstance(file, bytes) else file
    with _open_container(opened) as container, translate_ffmpeg_errors():
        yield container, _video_stream(opened, container)


@contextmanager
def translate_ffmpeg_errors() -> Iterator[None]:
    """Raise FFmpeg's errors within the block as ``UnreadableClip``.

    Raises:
        UnreadableClip: if FFmpeg fails.
    """
    try:
        yield
    except FFMPEG_ERRORS as error:
        raise UnreadableClip("damaged", f"the file is damaged: FFmpeg reports {ffmpeg_message(error)!r}") from error


def read_track(file: bytes | BinaryIO, stream: VideoStream) -> Track:
    """The properties of a stream that its container stores and PyAV does not expose.

    Args:
        file: the clip's bytes, or a binary file, whose position is kept.
        stream: a stream of the open container.
    """
    ranges = _ranges(BytesIO(file) if isinstance(file, bytes) else file)
    name = stream.container.format.name
    if name.startswith("mov"):
        movie = boxes.read_movie_box(ranges)
        return movie.tracks.get(stream.id, DEFAULT_TRACK) if movie else DEFAULT_TRACK
    if name.startswith("matroska"):
        videos = [other for other in stream.container.streams.video if not other.disposition & Disposition.attached_pic]
        tracks = ebml.read_tracks(ranges)
        return tracks[videos.index(stream)] if stream in videos and len(tracks) == len(videos) else DEFAULT_TRACK
    return DEFAULT_TRACK


def with_stream_orientation(track: Track, stream: VideoStream, sample: bytes) -> Track:
    """The track with the orientation that its first picture states, if the container states none.

    Args:
        track: as ``read_track`` returns it.
        stream: a stream of the open container.
        sample: the first bytes of the stream's first packet.
    """
    context = stream.codec_context
    codec = context.codec.canonical_name
    if codec not in sei.CODECS or track.orientation not in (None, UPRIGHT):
        return track
    orientation = sei.read_orientation(codec, context.extradata or b"", sample)
    return replace(track, orientation=orientation) if orientation else track


def first_orientation(
    stream: VideoStream, packets: Iterator[Packet[VideoStream]]
) -> tuple[list[Packet[VideoStream]], Orientation]:
    """The packets consumed to decode a stream's first decodable picture, and the orientation of that picture.

    Args:
        stream: a stream with an unused decoder, which is reset afterwards.
        packets: packets of the stream, from its first.
    """
    context, taken = stream.codec_context, []
    try:
        for packet in itertools.islice(packets, MAX_PACKETS_TO_PICTURE):
            taken.append(packet)
            if packet.is_discard:
                continue
            frames = _frames(context, packet)
            if not frames and sum(not one.is_discard for one in taken) == 1:  # usually a keyframe that is delayed
                frames = _frames(context, None)
                context.flush_buffers()
                _frames(context, packet)
            if frames:
                return taken, frame_orientation(frames[0]) or UPRIGHT
        last = _frames(context, None)
        return taken, (frame_orientation(last[0]) if last else None) or UPRIGHT
    finally:
        context.flush_buffers()


def _frames(context: VideoCodecContext, packet: Packet[VideoStream] | None) -> list[VideoFrame]:
    try:
        return context.decode(packet)
    except FFMPEG_ERRORS:
        return []


def decoder(stream: VideoStream) -> VideoCodecContext:
    """The decoder of a stream: FFmpeg's default, or one that decodes transparency as well."""
    codec = stream.codec_context.codec.canonical_name
    tags = {name.lower(): value for name, value in stream.metadata.items()}  # remuxing leaves a tag in capitals
    if tags.get("alpha_mode") != "1" or codec not in ALPHA_DECODERS:
        return stream.codec_context
    context = av.CodecContext.create(ALPHA_DECODERS[codec], "r")
    assert isinstance(context, VideoCodecContext)
    context.options = dict(DECODER_OPTIONS)
    return context


def _ranges(file: BinaryIO) -> ByteRanges:
    return file if isinstance(file, ByteRanges) else OpenFile(file)


def _open_container(file: BinaryIO) -> InputContainer:
    head = OpenFile(file).read_range(0, HEAD_BYTES)
    if not head:
        raise UnreadableClip("empty", "the file is empty")
    if picture := still_image_name(head):
        raise UnreadableClip("image", f"the file is {picture}, not a video: remove it from the shard")
    try:
        return av.open(
            file,
            "r",
            options=dict(DECODER_OPTIONS),  # opening decodes the first frames as well
            container_options={"format_whitelist": FORMATS},
            metadata_errors="replace",
        )
    except FFMPEG_ERRORS as error:
        if b"ftyp" in head[:32]:
            raise UnreadableClip(
                "damaged",
                f"the file begins as MP4, but its index (moov) is missing or damaged ({ffmpeg_message(error)}): it may "
                "be cut off",
            ) from error
        kind, name = file_kind(head)
        raise UnreadableClip(kind, f"the file is not a video, but {name} ({ffmpeg_message(error)})") from error


def _video_stream(file: BinaryIO, container: InputContainer) -> VideoStream:
    if all(stream.type == "data" for stream in container.streams):
        raise UnreadableClip("damaged", "the file is cut off: its index lists no video or audio track")
    videos = [stream for stream in container.streams.video if not stream.disposition & NOT_SHOWN]
    if not videos:
        _refuse_without_video(container)
    stream = min(videos, key=lambda video: _selection_key(video, videos))
    track = read_track(file, stream)
    _refuse_encrypted(file, stream, track)
    if stream.codec_context is None:
        raise UnreadableClip("unknown_codec", "no decoder for the file's video codec: convert it, for example to H.264")
    if not stream.codec_context.width:  # FFmpeg reports 0 if a decoder rejects the size
        raise UnreadableClip(
            "too_large",
            f"cannot determine the video's dimensions, or they exceed the limit of {MAX_PIXELS:,} pixels",
        )
    check_size(stream.codec_context.width, stream.codec_context.height)
    _refuse_colors(stream.codec_context, track)
    stream.codec_context.options = dict(DECODER_OPTIONS)  # each stream has options; its size may grow later
    return stream


def _selection_key(stream: VideoStream, videos: Sequence[VideoStream]) -> tuple[bool, ...]:
    """Sort key: players play the stream with the lowest key, and of equal ones the first in the file."""
    codec = _codec(stream.codec_context)
    return (
        codec is None,
        not stream.frames and any(video.frames for video in videos),  # an index without frames
        codec in STILL_CODECS and stream.frames <= 1,
        not stream.disposition & Disposition.default,
    )


def _codec(context: VideoCodecContext | None) -> str | None:
    """FFmpeg's name of a codec; None if it has no decoder."""
    return context.codec.canonical_name if context else None


def _refuse_without_video(container: InputContainer) -> NoReturn:
    if container.streams.audio:
        raise UnreadableClip("audio_only", "the file has audio but no video: remove it from the shard")
    if container.streams.video:
        raise UnreadableClip("image", "the file has still images but no video: remove it from the shard")
    raise UnreadableClip("no_video_stream", "the file has no video stream: remove it from the shard")


def _refuse_colors(context: VideoCodecContext, track: Track) -> None:
    is_rgb = context.format is not None and context.format.is_rgb
    if system := track.proprietary_colors or (None if is_rgb else UNSUPPORTED_MATRICES.get(context.colorspace)):
        raise UnreadableClip("unknown_colours", f"unsupported color system {system}: convert the video to BT.709")


def _refuse_encrypted(file: BinaryIO, stream: VideoStream, track: Track) -> None:
    ranges, name = _ranges(file), stream.container.format.name
    if track.drm:
        raise UnreadableClip("drm", "the video is protected by FairPlay: provide a file without protection")
    scheme = track.encryption
    if name == "mpegts" and is_scrambled(ranges, stream.id):
        scheme = "transport stream scrambling"
    elif name == "mpeg" and is_scrambled_program(ranges):
        scheme = "CSS, as on a DVD"
    if scheme:
        raise UnreadableClip("encrypted", f"the video is encrypted ({scheme}): decrypt it")
    if name == "asf" and (protection := asf_protection(ranges)):
        raise UnreadableClip("drm", f"the video is protected by {protection}: provide a file without protection")


def check_size(width: int, height: int) -> None:
    """Validate the size of pictures.

    Raises:
        UnreadableClip: if it exceeds ``MAX_PIXELS``, or ``MAX_SIDE`` along a side.
    """
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise UnreadableClip(
            "too_large",
            f"the video is {width}x{height} pixels, above the limit of {MAX_SIDE:,} a side and {MAX_PIXELS:,} in all: "
            "scale it down",
        )


def ffmpeg_message(error: Exception) -> str:
    """FFmpeg's message for an error, without the name of the file."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
