"""Previews of a window: a small animation and a poster."""

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
"""Maximum length of the longer side, in pixels."""
MIN_FPS = 4
"""Minimum frames per second of an animation: the sampling rate would be too slow."""
WEBP_OPTIONS = {"quality": "60", "compression_level": "2"}
"""Quality of WebP, up to 100: about 5 kB a frame at this size. The compression level is the effort, up to 6: the
default of 4 takes 1.7 to 2.1 times as long for files that are 1 to 6 % smaller."""
JPEG_OPTIONS = {"qmin": "6", "qmax": "6"}
"""Quantizer of JPEG, from 1 (best) to 31. Posters are embedded in galleries: at 3 they are 1.5 to 2 times as large."""


@dataclass(frozen=True, slots=True)
class Preview:
    """The preview of one window."""

    animation: bytes
    """Animated WebP in an endless loop."""
    poster: bytes
    """JPEG of the middle frame."""


def make_preview(pixels: NDArray[np.uint8], fps: float) -> Preview:
    """Encode a window's frames.

    Args:
        pixels: uint8 of shape (frames, height, width, 3), RGB.
        fps: frames per second.
    """
    frames = [VideoFrame.from_ndarray(picture, format="rgb24") for picture in pixels]
    rate = Fraction(max(fps, MIN_FPS)).limit_denominator(1000)
    return Preview(
        _encode(frames, "webp", "libwebp_anim", "yuv420p", rate, WEBP_OPTIONS),
        _encode(frames[len(frames) // 2 :][:1], "mjpeg", "mjpeg", "yuvj420p", rate, JPEG_OPTIONS),
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
    """Even width and height of at most ``MAX_SIDE_PIXELS``. Smaller pictures are not enlarged."""
    scale = min(1.0, MAX_SIDE_PIXELS / max(width, height))
    return max(int(width * scale) // 2 * 2, 2), max(int(height * scale) // 2 * 2, 2)
