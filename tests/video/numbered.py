"""Pictures that show their number, and recordings of them with any encoder and container."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from io import BytesIO
from typing import cast

import av
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

BITS = 8
"""Bits of a number. Each is a block, white for 1; the blocks stand in two rows."""
BLOCK = 24
"""Side of a block in pixels, large enough to survive any encoder."""
SIZE = 2 * BLOCK, BITS // 2 * BLOCK
"""Height and width."""


def picture(number: int) -> NDArray[np.uint8]:
    """The RGB picture that shows a number."""
    bits = [200 if number >> bit & 1 else 40 for bit in range(BITS)]
    blocks = np.array(bits, np.uint8).reshape(2, BITS // 2)
    gray = np.kron(blocks, np.ones((BLOCK, BLOCK), np.uint8))
    return np.repeat(gray[..., None], 3, axis=2)


def numbers(pictures: NDArray[np.uint8]) -> list[int]:
    """The numbers that pictures show. They may be RGB or gray, of any size."""
    gray = pictures.mean(-1) if pictures.ndim == 4 else pictures.astype(float)
    count, height, width = gray.shape
    blocks = gray[:, : height // 2 * 2, : width // 4 * 4].reshape(count, 2, height // 2, BITS // 2, width // 4)
    inner = blocks[:, :, height // 8 : -(height // 8) or None, :, width // 16 : -(width // 16) or None]
    bits = (inner.mean((2, 4)) > 120).reshape(count, BITS)
    return [int(sum(1 << bit for bit in range(BITS) if row[bit])) for row in bits]


@dataclass(frozen=True, slots=True)
class Encoder:
    """An encoder with its options."""

    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    pixels: str = "yuv420p"


@dataclass(frozen=True, slots=True)
class Recording:
    """One recording of numbered pictures."""

    encoder: Encoder
    container: str
    times: tuple[int, ...]
    """Presentation time of each picture, in units of 1/rate seconds."""
    rate: int = 25
    first: int = 0
    """The number of the first picture."""
    muxer: Mapping[str, str] = field(default_factory=dict)

    def write(self) -> bytes:
        """The recording as a file."""
        file = BytesIO()
        with av.open(file, "w", format=self.container, container_options=dict(self.muxer)) as output:
            stream = cast(
                VideoStream, output.add_stream(self.encoder.name, rate=self.rate, options=dict(self.encoder.options))
            )
            stream.height, stream.width = SIZE
            stream.pix_fmt = self.encoder.pixels
            stream.codec_context.thread_count = 1
            stream.time_base = stream.codec_context.time_base = Fraction(1, self.rate)
            for index, time in enumerate(self.times):
                frame = av.VideoFrame.from_ndarray(picture(self.first + index), format="rgb24")
                frame.pts, frame.time_base = time, Fraction(1, self.rate)
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        return file.getvalue()


def x264(*, gop: int, bframes: int = 0, **others: str) -> Encoder:
    """H.264 with groups of ``gop`` pictures."""
    params = {"keyint": str(gop), "min-keyint": "1", "scenecut": "0", "bframes": str(bframes), "threads": "1"}
    params |= {name.replace("_", "-"): value for name, value in others.items()}
    joined = ":".join(f"{name}={value}" for name, value in params.items())
    return Encoder("libx264", {"preset": "ultrafast", "crf": "12", "x264-params": joined})


def x265(*, gop: int, bframes: int = 0, open_gop: bool = False) -> Encoder:
    """H.265 with groups of ``gop`` pictures."""
    params = f"keyint={gop}:min-keyint=1:scenecut=0:bframes={bframes}:open-gop={int(open_gop)}:log-level=none"
    return Encoder("libx265", {"preset": "ultrafast", "crf": "12", "x265-params": params})


def mpeg(codec: str, *, gop: int, bframes: int = 0) -> Encoder:
    """MPEG-1, -2 or -4 with groups of ``gop`` pictures."""
    return Encoder(codec, {"g": str(gop), "bf": str(bframes), "b": "4000000"})


def vpx(codec: str, *, gop: int, hidden: bool = False) -> Encoder:
    """VP8 or VP9, with hidden frames or without."""
    options = {"g": str(gop), "b": "2000000", "cpu-used": "5", "deadline": "good" if hidden else "realtime"}
    if hidden:
        options |= {"auto-alt-ref": "1", "lag-in-frames": "16"}
    return Encoder(codec, options)


@cache
def recordings_by_name() -> Sequence[tuple[str, Recording]]:
    """Recordings of every codec in its usual containers, with their names."""
    found: list[tuple[str, Recording]] = []
    even = tuple(range(40))
    uneven = tuple(np.cumsum(random.Random(1).choices((1, 1, 1, 2, 4), k=40)).tolist())

    def add(name: str, encoder: Encoder, containers: Sequence[str], *, varying: Sequence[str] = ()) -> None:
        for container in containers:
            found.append((f"{name}, {container}", Recording(encoder, container, even)))
        for container in varying:
            found.append((f"{name}, {container}, variable rate", Recording(encoder, container, uneven)))

    all_containers = ("mp4", "mov", "matroska", "mpegts", "flv", "avi", "mpeg")
    for gop in (1, 10, 250):
        for bframes in (0, 2, 4) if gop > 1 else (0,):
            add(
                f"h264 gop {gop} b {bframes}",
                x264(gop=gop, bframes=bframes),
                all_containers,
                varying=("mp4", "matroska"),
            )
    add("h264 open gop", x264(gop=10, bframes=3, open_gop="1", b_pyramid="normal"), all_containers)
    add("h264 refresh", x264(gop=10, bframes=0, intra_refresh="1"), ("mp4", "mpegts", "matroska"))
    add("h264 interlaced", x264(gop=10, bframes=2, tff="1"), ("mp4", "mpegts", "matroska"))
    for gop in (1, 10, 250):
        for bframes in (0, 3) if gop > 1 else (0,):
            usual = ("mp4", "mov", "matroska", "mpegts")
            add(f"hevc gop {gop} b {bframes}", x265(gop=gop, bframes=bframes), usual, varying=("mp4",))
    add("hevc open gop", x265(gop=10, bframes=3, open_gop=True), ("mp4", "matroska", "mpegts"))
    for codec, containers in {
        "mpeg1video": ["mpeg", "mpegts", "matroska"],
        "mpeg2video": ["mpeg", "vob", "mpegts", "matroska", "mov", "asf", "mxf"],
        "mpeg4": ["avi", "mp4", "matroska", "mpegts", "asf"],
    }.items():
        for gop in (1, 12):
            for bframes in (0, 2) if gop > 1 else (0,):
                add(f"{codec} gop {gop} b {bframes}", mpeg(codec, gop=gop, bframes=bframes), containers)
    for codec in ("libvpx", "libvpx-vp9"):
        for hidden in (False, True):
            places = ["webm", "matroska"] if codec == "libvpx" else ["webm", "matroska", "mp4"]
            name = f"{codec} {'hidden' if hidden else 'plain'}"
            add(name, vpx(codec, gop=12, hidden=hidden), places, varying=("webm",))
    add("av1", Encoder("libsvtav1", {"preset": "12", "g": "12"}), ("mp4", "matroska", "webm"), varying=("mp4",))
    add("mjpeg", Encoder("mjpeg", {}, "yuvj420p"), ("avi", "mov", "matroska"), varying=("mov",))
    add("prores", Encoder("prores_ks", {}, "yuv422p10le"), ("mov", "matroska"), varying=("mov",))
    add("ffv1", Encoder("ffv1"), ("matroska", "avi"))
    add("raw", Encoder("rawvideo"), ("matroska", "avi", "nut"))
    add("png", Encoder("png", {}, "rgb24"), ("mov",))
    add("qtrle", Encoder("qtrle", {}, "rgb24"), ("mov",))
    add("gif", Encoder("gif", {}, "rgb8"), ("gif",))
    add("apng", Encoder("apng", {}, "rgb24"), ("apng",))
    add("wmv2", Encoder("wmv2", {"b": "4000000"}), ("asf", "avi"))
    add("flv1", Encoder("flv", {"b": "4000000"}), ("flv",))
    add("huffyuv", Encoder("huffyuv", {}, "yuv422p"), ("avi",))
    fragments = {"movflags": "frag_keyframe+empty_moov"}
    for name, encoder in (
        ("h264 fragmented", x264(gop=10, bframes=2)),
        ("hevc fragmented", x265(gop=10, bframes=3)),
        ("vp9 fragmented", vpx("libvpx-vp9", gop=12, hidden=True)),
        ("av1 fragmented", Encoder("libsvtav1", {"preset": "12", "g": "12"})),
    ):
        for rate, times in ((25, even), (30, even), (25, uneven)):
            varying = ", variable rate" if times is uneven else ""
            found.append((f"{name} at {rate}{varying}", Recording(encoder, "mp4", times, rate, muxer=fragments)))
    for rate in (10, 24, 30, 50, 60):
        for container in ("mp4", "matroska", "mpegts", "avi"):
            found.append((f"h264 at {rate}, {container}", Recording(x264(gop=12, bframes=2), container, even, rate)))
    return tuple(found)
