"""A clip's container, opened from its bytes with nothing else within reach."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import BinaryIO

import av
from av.container import InputContainer
from av.video.stream import VideoStream

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,gif"
"""Containers that may be opened. Others are refused: an ffconcat list, say, would make FFmpeg open local files."""

MAX_PIXELS = 8192 * 8192
"""Pixels of a frame that are still decoded: a file of 64 KB can declare 16k x 16k, for 1.2 GB of memory."""

MAX_SIDE = 16384
"""Pixels along one side that are still decoded, the most that H.264 levels and most decoders know."""

DECODER = {"max_pixels": str(MAX_PIXELS), "threads": "1"}
"""Options of every decoder. One thread: clips side by side beat threads within one (2.30 to 1.53 clips a second)."""

BROKEN = (av.FFmpegError, OSError, ValueError, IndexError)
"""What PyAV raises over damaged files: its own errors, and bare ones out of opening and demuxing."""


class UnreadableClip(Exception):
    """A clip that holds no video that can be captioned. The message tells a person why."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        """One word for tables: ``not_a_video``, ``no_video_stream``, ``damaged``, ``too_short`` and the like."""

    def __reduce__(self) -> tuple[type[UnreadableClip], tuple[str, str]]:
        """So that it can come out of a worker process: an exception's own way would lose the kind."""
        return type(self), (self.kind, str(self))


@contextmanager
def open_video(file: bytes | BinaryIO) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a clip and yield the container and its best video stream.

    Args:
        file: the clip's bytes, or a binary file that can be read and sought.

    Raises:
        UnreadableClip: if FFmpeg finds no container or no video in it, or fails within the block.
    """
    with _open_container(BytesIO(file) if isinstance(file, bytes) else file) as container:
        try:
            yield container, _video_stream(container)
        except BROKEN as error:
            raise UnreadableClip("damaged", f"the file is damaged: its video breaks off ({detail(error)})") from error


def _open_container(file: BinaryIO) -> InputContainer:
    head = file.read(32)
    file.seek(0)
    if not head:
        raise UnreadableClip("not_a_video", "the file is empty")
    try:
        return av.open(
            file,
            "r",
            options=dict(DECODER),  # opening decodes a frame or two as well
            container_options={"format_whitelist": FORMATS},
            metadata_errors="replace",
        )
    except BROKEN as error:
        if b"ftyp" in head:
            raise UnreadableClip(
                "damaged",
                f"the file begins as MP4 but its index (moov) is missing or broken: is it cut off? ({detail(error)})",
            ) from error
        raise UnreadableClip("not_a_video", f"the file cannot be read as a video ({detail(error)})") from error


def _video_stream(container: InputContainer) -> VideoStream:
    if all(stream.type == "data" for stream in container.streams):
        raise UnreadableClip("damaged", "the file's index describes no picture or sound: it is cut off")
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream):
        raise UnreadableClip("no_video_stream", "the file has no video stream")
    if stream.codec_context is None:
        raise UnreadableClip("unknown_codec", "there is no decoder for the file's video: convert it, say to H.264")
    if not stream.codec_context.width:  # FFmpeg says 0 where a decoder refused the size
        raise UnreadableClip(
            "too_large", f"the video's size cannot be told, or is more than the {MAX_PIXELS:,} pixels that are decoded"
        )
    check_size(stream.codec_context.width, stream.codec_context.height)
    stream.codec_context.options = dict(DECODER)  # of its own; and a stream may grow midway
    return stream


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
