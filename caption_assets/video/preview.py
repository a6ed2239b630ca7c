"""What people see of a window before they open the clip: a small moving picture and a still one."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from typing import cast

import av
import numpy as np
from av import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

MAX_SIDE_PIXELS = 320
"""Pixels, at most."""
MIN_FPS = 4
"""Frames per second at least: at the rate of sampling a preview would creep."""
QUALITY = {"quality": "60"}
"""Of WebP, of 100: about 5 kB a frame at this size."""
SHARP = {"qmin": "6", "qmax": "6"}
"""JPEG's quantiser, from 1 (best) to 31. A gallery embeds its posters: at 3 they weigh half as much again, or twice."""


@dataclass(frozen=True, slots=True)
class Preview:
    """Both pictures of a window."""

    animation: bytes
    """Animated WebP, which plays for ever."""
    poster: bytes
    """JPEG of its middle frame."""


def make_preview(pixels: NDArray[np.uint8], fps: float) -> Preview:
    """Encode a window's frames.

    Args:
        pixels: uint8 of shape (frames, height, width, 3), RGB.
        fps: frames per second.
    """
    frames = [VideoFrame.from_ndarray(picture, format="rgb24") for picture in pixels]
    rate = Fraction(max(fps, MIN_FPS)).limit_denominator(1000)
    return Preview(
        _encode(frames, "webp", "libwebp_anim", "yuv420p", rate, QUALITY),
        _encode(frames[len(frames) // 2 :][:1], "mjpeg", "mjpeg", "yuvj420p", rate, SHARP),
    )


def _encode(
    frames: list[VideoFrame], kind: str, codec: str, pixels: str, rate: Fraction, options: dict[str, str]
) -> bytes:
    width, height = _size(frames[0].width, frames[0].height)
    file = BytesIO()
    looped = {"loop": "0"} if kind == "webp" else {}
    with av.open(file, "w", format=kind, container_options=looped) as container:
        stream = cast(VideoStream, container.add_stream(codec, rate=rate, options=options))
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        for number, frame in enumerate(frames):
            picture = frame.reformat(width, height, pixels, threads=1)
            picture.pts, picture.time_base = number, 1 / rate
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return file.getvalue()


def _size(width: int, height: int) -> tuple[int, int]:
    """Even, and no side longer than allowed; small pictures keep their size."""
    scale = min(1.0, MAX_SIDE_PIXELS / max(width, height))
    return max(int(width * scale) // 2 * 2, 2), max(int(height * scale) // 2 * 2, 2)
