"""A clip's container, opened from its bytes with nothing else within reach."""

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
from caption_assets.video.matrix import REFUSED
from caption_assets.video.scrambling import asf_protection, is_scrambled, is_scrambled_program
from caption_assets.video.signature import HEAD_BYTES, image_of, kind_of
from caption_assets.video.track import PLAIN, ByteRanges, OpenFile, Track

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,gif,apng,mxf,nut,dv,ivf,obu,yuv4mpegpipe,"
    "h264,hevc,m4v,mpegvideo"
)
"""Containers, and streams without one, that may be opened. Others are refused: an ffconcat list, say, would make FFmpeg
open local files."""

STILLS = frozenset({"mjpeg", "png", "bmp", "tiff", "webp", "gif", "jpeg2000", "targa"})
"""Codecs, by FFmpeg's names, of a track that is a cover picture where the file has a film as well."""
NOT_SHOWN = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image | Disposition.dependent
"""What a file says of tracks that players do not show as its film."""
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Decoders of transparency in WebM, which lies beside the pictures; FFmpeg's own leave it out."""

MAX_PIXELS = 8192 * 8192
"""Pixels of a frame that are still decoded: a file of 64 KB can declare 16k x 16k, for 1.2 GB of memory."""

MAX_SIDE = 16384
"""Pixels along one side that are still decoded, the most that H.264 levels and most decoders know."""

DECODER = {"max_pixels": str(MAX_PIXELS), "threads": "1"}
"""Options of every decoder. One thread: clips side by side beat threads within one (2.30 to 1.53 clips a second)."""

FIRST_PACKETS = 600
"""Packets in which a picture is looked for that can be decoded: the 20 s that the longest groups of pictures last in
broadcasts and surveillance."""

BROKEN = (av.FFmpegError, OSError, ValueError, IndexError)
"""What PyAV raises over damaged files: its own errors, and bare ones out of opening and demuxing."""


@contextmanager
def open_video(file: bytes | BinaryIO) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a clip and yield the container and the video stream that players show.

    Args:
        file: the clip's bytes, or a binary file that can be read and sought.

    Raises:
        UnreadableClip: if FFmpeg finds no container or no video in it, or fails within the block.
    """
    opened = BytesIO(file) if isinstance(file, bytes) else file
    with _open_container(opened) as container, reports_damage():
        yield container, _video_stream(opened, container)


@contextmanager
def reports_damage() -> Iterator[None]:
    """DiffSegments FFmpeg's errors within the block into a refusal of the clip.

    Raises:
        UnreadableClip: if FFmpeg fails.
    """
    try:
        yield
    except BROKEN as error:
        raise UnreadableClip("damaged", f"the file is damaged: its video breaks off ({detail(error)})") from error


def read_track(file: bytes | BinaryIO, stream: VideoStream) -> Track:
    """What the container says of a stream beside what PyAV tells.

    Args:
        file: the clip's bytes, or a binary file, which is left at the position that it has.
        stream: of the open container.
    """
    ranges = _ranges(BytesIO(file) if isinstance(file, bytes) else file)
    name = stream.container.format.name
    if name.startswith("mov"):
        index = boxes.read_index(ranges)
        return index.tracks.get(stream.id, PLAIN) if index else PLAIN
    if name.startswith("matroska"):
        films = [other for other in stream.container.streams.video if not other.disposition & Disposition.attached_pic]
        tracks = ebml.read_tracks(ranges)
        return tracks[films.index(stream)] if stream in films and len(tracks) == len(films) else PLAIN
    return PLAIN


def with_own_orientation(track: Track, stream: VideoStream, sample: bytes) -> Track:
    """The track with the orientation that its first picture asks for, where the container asks for none.

    Args:
        track: as ``read_track`` returns it.
        stream: of the open container.
        sample: the first bytes of the stream's first packet.
    """
    context = stream.codec_context
    codec = context.codec.canonical_name
    if codec not in sei.CODECS or track.orientation not in (None, UPRIGHT):
        return track
    own = sei.read_orientation(codec, context.extradata or b"", sample)
    return replace(track, orientation=own) if own else track


def first_orientation(
    stream: VideoStream, packets: Iterator[Packet[VideoStream]]
) -> tuple[list[Packet[VideoStream]], Orientation]:
    """The orientation of a stream's first picture that can be decoded, and the packets that it took.

    Args:
        stream: whose decoder is as it was when the container was opened, and is so again afterwards.
        packets: of the stream, from its first.
    """
    context, taken = stream.codec_context, []
    try:
        for packet in itertools.islice(packets, FIRST_PACKETS):
            taken.append(packet)
            if packet.is_discard:
                continue
            frames = _frames(context, packet)
            if not frames and sum(not one.is_discard for one in taken) == 1:  # mostly it is a keyframe, and held back
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
    except BROKEN:
        return []


def decoder(stream: VideoStream) -> VideoCodecContext:
    """The decoder of a stream: its own, or one that decodes transparency as well."""
    codec = stream.codec_context.codec.canonical_name
    told = {name.lower(): value for name, value in stream.metadata.items()}  # remuxing leaves a tag in capitals
    if told.get("alpha_mode") != "1" or codec not in ALPHA_DECODERS:
        return stream.codec_context
    context = av.CodecContext.create(ALPHA_DECODERS[codec], "r")
    assert isinstance(context, VideoCodecContext)
    context.options = dict(DECODER)
    return context


def _ranges(file: BinaryIO) -> ByteRanges:
    return file if isinstance(file, ByteRanges) else OpenFile(file)


def _open_container(file: BinaryIO) -> InputContainer:
    head = OpenFile(file).read_range(0, HEAD_BYTES)
    if not head:
        raise UnreadableClip("empty", "the file is empty")
    if picture := image_of(head):
        raise UnreadableClip("image", f"the file is {picture}, not a video")
    try:
        return av.open(
            file,
            "r",
            options=dict(DECODER),  # opening decodes a frame or two as well
            container_options={"format_whitelist": FORMATS},
            metadata_errors="replace",
        )
    except BROKEN as error:
        if b"ftyp" in head[:32]:
            raise UnreadableClip(
                "damaged",
                f"the file begins as MP4 but its index (moov) is missing or broken: is it cut off? ({detail(error)})",
            ) from error
        kind, name = kind_of(head)
        raise UnreadableClip(kind, f"the file cannot be read as a video: it is {name} ({detail(error)})") from error


def _video_stream(file: BinaryIO, container: InputContainer) -> VideoStream:
    if all(stream.type == "data" for stream in container.streams):
        raise UnreadableClip("damaged", "the file's index describes no picture or sound: it is cut off")
    films = [stream for stream in container.streams.video if not stream.disposition & NOT_SHOWN]
    if not films:
        _refuse_without_film(container)
    stream = min(films, key=lambda film: _order(film, films))
    track = read_track(file, stream)
    _refuse_encrypted(file, stream, track)
    if stream.codec_context is None:
        raise UnreadableClip("unknown_codec", "there is no decoder for the file's video: convert it, say to H.264")
    if not stream.codec_context.width:  # FFmpeg says 0 where a decoder refused the size
        raise UnreadableClip(
            "too_large", f"the video's size cannot be told, or is more than the {MAX_PIXELS:,} pixels that are decoded"
        )
    check_size(stream.codec_context.width, stream.codec_context.height)
    _refuse_colours(stream.codec_context, track)
    stream.codec_context.options = dict(DECODER)  # of its own; and a stream may grow midway
    return stream


def _order(stream: VideoStream, films: Sequence[VideoStream]) -> tuple[bool, ...]:
    """The lower, the sooner players show it; of equal streams, they show the first in the file."""
    codec = _codec(stream.codec_context)
    return (
        codec is None,
        not stream.frames and any(film.frames for film in films),  # an index without frames
        codec in STILLS and stream.frames <= 1,
        not stream.disposition & Disposition.default,
    )


def _codec(context: VideoCodecContext | None) -> str | None:
    """FFmpeg's name of a codec; None where it has no decoder."""
    return context.codec.canonical_name if context else None


def _refuse_without_film(container: InputContainer) -> NoReturn:
    if container.streams.audio:
        raise UnreadableClip("audio_only", "the file holds sound and no video")
    if container.streams.video:
        raise UnreadableClip("image", "the file holds still pictures and no video")
    raise UnreadableClip("no_video_stream", "the file has no video stream")


def _refuse_colours(context: VideoCodecContext, track: Track) -> None:
    is_rgb = context.format is not None and context.format.is_rgb
    if system := track.own_colours or (None if is_rgb else REFUSED.get(context.colorspace)):
        raise UnreadableClip("unknown_colours", f"the video's colours are coded as {system}: convert it, say to BT.709")


def _refuse_encrypted(file: BinaryIO, stream: VideoStream, track: Track) -> None:
    ranges, name = _ranges(file), stream.container.format.name
    if track.drm:
        raise UnreadableClip("drm", "the video is protected by FairPlay: only Apple's players have the key")
    scheme = track.encryption
    if name == "mpegts" and is_scrambled(ranges, stream.id):
        scheme = "transport stream scrambling"
    elif name == "mpeg" and is_scrambled_program(ranges):
        scheme = "CSS, as on a DVD"
    if scheme:
        raise UnreadableClip("encrypted", f"the video is encrypted ({scheme}): decrypt it")
    if name == "asf" and (protection := asf_protection(ranges)):
        raise UnreadableClip("drm", f"the video is protected by {protection}: give a file without protection")


def check_size(width: int, height: int) -> None:
    """Refuse pictures of more than ``MAX_PIXELS``, or more than ``MAX_SIDE`` along a side.

    Raises:
        UnreadableClip: if they are that large.
    """
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise UnreadableClip(
            "too_large",
            f"the video is {width}x{height} pixels, above the limit of {MAX_SIDE:,} a side and {MAX_PIXELS:,} in all: "
            "scale it down",
        )


def detail(error: Exception) -> str:
    """FFmpeg's words for an error, without the name of the file."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
