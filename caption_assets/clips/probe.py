"""What a clip's container says of it: size, length, frame rate and the time of every frame."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

import av
from av.container import InputContainer
from av.video.stream import VideoStream

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,gif"
"""Containers that may be opened. Others are refused: an ffconcat list, say, would make FFmpeg open local files."""

BROKEN = (av.FFmpegError, OSError, ValueError, IndexError)
"""What PyAV raises over damaged files: its own errors, and bare ones out of opening and demuxing."""


class UnreadableClip(Exception):
    """A clip that holds no video that can be captioned. The message tells a person why."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        """One word for tables: ``not_a_video``, ``no_video_stream``, ``damaged`` or ``too_short``."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What is known of a clip before its frames are decoded."""

    codec: str
    width: int
    """Pixels, as coded: a rotation for display is not applied."""
    height: int
    """Pixels, as coded."""
    times: tuple[float, ...]
    """When each frame is shown, in seconds from the first, ascending."""

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self.times)

    @property
    def fps(self) -> float:
        """Average frames per second; of a single frame, 1."""
        return (self.frames - 1) / self.times[-1] if self.frames > 1 and self.times[-1] > 0 else 1.0

    @property
    def seconds(self) -> float:
        """Length of the clip: the last frame is shown for an average frame's time."""
        return self.times[-1] + 1.0 / self.fps


@contextmanager
def open_video(data: bytes) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a clip's bytes and yield the container and its best video stream.

    Raises:
        UnreadableClip: if FFmpeg finds no container or no video in it, or fails within the block.
    """
    with _open_container(data) as container:
        try:
            yield container, _video_stream(container)
        except BROKEN as error:
            raise UnreadableClip("damaged", f"the file is damaged: its video breaks off ({_detail(error)})") from error


def _open_container(data: bytes) -> InputContainer:
    if not data:
        raise UnreadableClip("not_a_video", "the file is empty")
    try:
        return av.open(BytesIO(data), "r", container_options={"format_whitelist": FORMATS}, metadata_errors="replace")
    except BROKEN as error:
        if b"ftyp" in data[:32] and b"moov" not in data:
            raise UnreadableClip(
                "damaged", f"the file begins as MP4 but its index (moov) is missing: it is cut off ({_detail(error)})"
            ) from error
        raise UnreadableClip("not_a_video", f"the file cannot be read as a video ({_detail(error)})") from error


def _video_stream(container: InputContainer) -> VideoStream:
    if all(stream.type == "data" for stream in container.streams):
        raise UnreadableClip("damaged", "the file's index describes no picture or sound: it is cut off")
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream):
        raise UnreadableClip("no_video_stream", "the file has no video stream")
    return stream


def _detail(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def probe(data: bytes) -> Probe:
    """Read a clip's stream description and the time of every frame, decoding none.

    Raises:
        UnreadableClip: if there is no video in it.
    """
    with open_video(data) as (container, stream):
        stamps = sorted(packet_stamps(container, stream))
        if not stamps or not stream.time_base:
            raise UnreadableClip("damaged", "the file has a video stream but no frames: it may be cut off")
        context = stream.codec_context
        return Probe(
            codec=context.name,
            width=context.width,
            height=context.height,
            times=tuple(float((stamp - stamps[0]) * stream.time_base) for stamp in stamps),
        )


def packet_stamps(container: InputContainer, stream: VideoStream) -> Iterator[int]:
    """The presentation stamp of each frame to be shown, in the stream's time base, in file order."""
    for packet in container.demux(stream):
        if packet.pts is not None and not packet.is_discard:
            yield packet.pts
