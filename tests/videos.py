"""Small real video files for tests."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from io import BytesIO

import av
import numpy as np
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
