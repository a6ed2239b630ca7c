"""Small real video files for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from io import BytesIO
from types import MappingProxyType
from typing import Any, cast

import av
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

RGB = NDArray[np.uint8]


def video(
    pictures: Iterable[RGB],
    *,
    encoder: str = "libx264",
    container: str = "mp4",
    fps: int = 25,
    pix_fmt: str = "yuv420p",
    options: Mapping[str, str] = MappingProxyType({}),
    muxer: Mapping[str, str] = MappingProxyType({}),
    stamps: Sequence[int] | None = None,
    prepare: Callable[[VideoStream], None] = lambda stream: None,
) -> bytes:
    """A video file of some pictures.

    Args:
        pictures: uint8 RGB of (height, width, 3), all alike.
        encoder: FFmpeg's name of the encoder.
        container: FFmpeg's name of the muxer.
        fps: frames per second, and the time base of ``stamps``.
        pix_fmt: FFmpeg's name of the pixel format.
        options: the encoder's.
        muxer: the muxer's options.
        stamps: presentation stamps in units of 1/fps seconds; by default 0, 1, 2, …
        prepare: is given the stream before the first picture.
    """
    file = BytesIO()
    frames = [av.VideoFrame.from_ndarray(picture, format="rgb24") for picture in pictures]
    with av.open(file, "w", format=container, container_options=dict(muxer)) as output:
        stream = cast(VideoStream, output.add_stream(encoder, rate=fps, options=dict(options)))
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, pix_fmt
        stream.time_base = stream.codec_context.time_base = Fraction(1, fps)
        prepare(stream)
        for index, frame in enumerate(frames):
            frame.pts = stamps[index] if stamps else index
            frame.time_base = Fraction(1, fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def moving_video(frames: int, size: tuple[int, int] = (96, 64), **how: Any) -> bytes:
    """A file of ``moving`` pictures. Keywords are those of ``video``."""
    return video(moving(frames, size), **how)


def moving(frames: int, size: tuple[int, int]) -> Iterator[RGB]:
    """Pictures of (height, width, 3) in which a grainy texture moves, so that each is predicted from others, badly."""
    rng = np.random.default_rng(0)
    width, height = size
    texture = rng.integers(40, 200, (height + frames, width + frames, 3), dtype=np.uint8)
    for index in range(frames):
        grain = rng.integers(0, 40, (height, width, 3), dtype=np.uint8)
        yield texture[index // 2 : index // 2 + height, index : index + width] + grain


def counting_video(
    frames: int,
    *,
    fps: int = 25,
    size: tuple[int, int] = (64, 48),
    stamps: Sequence[int] | None = None,
) -> bytes:
    """An H.264 file whose frame ``n`` has the gray level of ``level(n)``.

    Args:
        frames: how many.
        fps: frames per second, and the time base of ``stamps``.
        size: width and height.
        stamps: presentation stamps in units of 1/fps seconds; by default 0, 1, 2, …
    """
    pictures = (gray(level(index), size) for index in range(frames))
    return video(pictures, fps=fps, options={"crf": "10", "bf": "2"}, stamps=stamps)


def level(index: int) -> int:
    """The gray level of a counting video's frame, far enough from its neighbours' to survive compression."""
    return 30 + (index * 37) % 200


def gray(value: int, size: tuple[int, int]) -> RGB:
    """A plain picture of (height, width, 3)."""
    return np.full((size[1], size[0], 3), value, dtype=np.uint8)


def sound_only() -> bytes:
    """An MP4 file with an audio stream and no video."""
    file = BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16_000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        silence.sample_rate = 16_000
        container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    return file.getvalue()
