"""What a clip's container says of it: size, length, frame rate and the time of every frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from av.container import InputContainer
from av.video.stream import VideoStream

from caption_assets.clips.container import UnreadableClip, open_video


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
