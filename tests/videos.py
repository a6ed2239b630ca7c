"""Small real video files for tests."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import av
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray


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
    file = BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "10", "bf": "2"})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, fps)
        for index in range(frames):
            picture = av.VideoFrame.from_ndarray(gray(level(index), size), format="rgb24")
            picture.pts = stamps[index] if stamps else index
            picture.time_base = Fraction(1, fps)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return file.getvalue()


def level(index: int) -> int:
    """The gray level of a counting video's frame, far enough from its neighbours' to survive compression."""
    return 30 + (index * 37) % 200


def gray(value: int, size: tuple[int, int]) -> NDArray[np.uint8]:
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


def film(
    codec: str = "libx264",
    *,
    container: str = "mp4",
    frames: int = 50,
    size: tuple[int, int] = (160, 120),
    pixel_format: str = "yuv420p",
    stamps: Sequence[int] | None = None,
    sound: bool = True,
    rotation: int = 0,
    pixel_aspect: Fraction | None = None,
    movflags: str = "",
    **options: str,
) -> bytes:
    """A film of moving noise at 25 frames a second, which no codec makes small.

    Args:
        codec: FFmpeg's name of the encoder.
        container: FFmpeg's name of the format.
        frames: how many.
        size: width and height.
        pixel_format: FFmpeg's name.
        stamps: presentation stamps in units of 1/25 s; by default 0, 1, 2, …
        sound: whether an AAC track is interleaved.
        rotation: degrees counter-clockwise by which a player is told to turn the pictures.
        pixel_aspect: width of a pixel by its height.
        movflags: of FFmpeg's MP4 muxer: ``faststart`` puts the index first.
        options: of the encoder.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "film"  # a real file: to put the index first, the muxer opens it a second time
        flags = {"movflags": movflags} if movflags else {}
        with av.open(str(path), "w", format=container, options=flags) as output:
            stream = cast(VideoStream, output.add_stream(codec, rate=25, options=options))
            stream.width, stream.height = size
            stream.pix_fmt = pixel_format
            stream.codec_context.time_base = Fraction(1, 25)
            stream.codec_context.thread_count = 1
            if pixel_aspect:
                stream.codec_context.sample_aspect_ratio = pixel_aspect
            if rotation:
                stream.set_display_rotation(rotation)
            track = output.add_stream("aac", rate=16_000) if sound else None
            noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            for index in range(frames):
                picture = av.VideoFrame.from_ndarray(np.roll(noise, 3 * index, axis=1), format="rgb24")
                picture.pts, picture.time_base = stamps[index] if stamps else index, Fraction(1, 25)
                output.mux(stream.encode(picture))
                if track:
                    output.mux(track.encode(tone(index)))
            output.mux(stream.encode(None))
            if track:
                output.mux(track.encode(None))
        return path.read_bytes()


def tone(index: int) -> av.AudioFrame:
    """1/25 second of sound, which changes with ``index``."""
    wave = np.sin(np.arange(640, dtype=np.float32) * (index + 1) / 9)[None] / 2
    frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = 16_000, 640 * index, Fraction(1, 16_000)
    return frame
