"""The clips of the comparison with NeMo Curator: H.264 of 1280x720, 24 fps and 8 s, with one window each.

A clip joins two segments of 4 s, each a group of pictures of its own. The ordered pairs of a few segments give enough
different clips, and encoding takes a minute instead of ten. Segments are cached.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from hashlib import sha256
from io import BytesIO
from itertools import repeat
from pathlib import Path

import av
import numpy as np
from av.video.frame import PictureType
from numpy.typing import NDArray

from caption_assets.sample.world import random_scene, render

WIDTH, HEIGHT, FPS = 1280, 720, 24
SEGMENT = 96
"""Number of frames of a segment."""
SEGMENTS = 12
"""Number of segments of a kind, for at most 144 clips."""
SCALE = 4
"""Scenes are rendered at a quarter of the size, and enlarged: texture and grain are added at full size."""
SHAKE = 2.5
"""Standard deviation of the camera's movement in a frame, in pixels."""
BANK = (1024, 2048)
"""Height and width of the texture and of the grain, from which frames are cut."""
OCTAVES = ((64, 4.0), (16, 2.0), (4, 1.0), (1, 0.5))
"""Size of a texture's cells in pixels, and their weight."""


@dataclass(frozen=True, slots=True)
class ClipKind:
    """How clips are encoded, and what they show.

    x264 chooses P-frames where grain hides what a B-frame would gain, also with ``b-adapt=0``.
    """

    name: str
    bit_rate: int
    """Bits per second."""
    texture: float
    """Standard deviation of the background, in 8-bit levels."""
    grain: float
    """Standard deviation of the noise of each frame, in 8-bit levels."""
    params: str = ""
    """Parameters of x264."""


KINDS = {
    kind.name: kind
    for kind in (
        ClipKind("ibbbp", 4_000_000, texture=12.0, grain=3.0, params="b-adapt=0:bframes=3"),
        ClipKind("auto", 4_000_000, texture=7.0, grain=4.0),
        ClipKind("cheap", 300_000, texture=12.0, grain=3.0),
    )
}


def make_clips(kind: ClipKind, count: int, cache_folder: Path) -> list[bytes]:
    """Different clips of a kind, as MP4 files.

    Args:
        kind: the kind.
        count: number of clips, at most ``SEGMENTS`` squared.
        cache_folder: has the segments of earlier calls.
    """
    segments = _segments(kind, cache_folder)
    pairs = ((number % SEGMENTS, (number + number // SEGMENTS) % SEGMENTS) for number in range(count))
    return [_join(segments[first], segments[second]) for first, second in pairs]


def describe(clip: bytes) -> str:
    """Bit rate and frame types of a clip."""
    with av.open(BytesIO(clip), "r") as container:
        types = Counter(PictureType(frame.pict_type).name for frame in container.decode(video=0))
    share = {name: f"{count / types.total():.0%}" for name, count in types.most_common()}
    return f"{8e-6 * len(clip) * FPS / types.total():.2f} Mbit/s, {share}"


def _segments(kind: ClipKind, cache_folder: Path) -> list[bytes]:
    version = sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    folder = cache_folder / f"segments-{version}" / kind.name
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:02}.mp4" for number in range(SEGMENTS)]
    missing = [number for number, file in enumerate(files) if not file.exists()]
    with ProcessPoolExecutor() as pool:
        for number, data in zip(missing, pool.map(_encode, repeat(kind), missing), strict=True):
            files[number].write_bytes(data)
    return [file.read_bytes() for file in files]


def _encode(kind: ClipKind, seed: int) -> bytes:
    file = BytesIO()
    params = ":".join(filter(None, (kind.params, "threads=1")))
    with av.open(file, "w", format="mp4") as output:
        options = {"preset": "veryfast", "x264-params": params}
        stream = output.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", kind.bit_rate
        for frame in _frames(kind, seed):
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def _frames(kind: ClipKind, seed: int) -> Iterator[av.VideoFrame]:
    """A scene of the sample world, before a camera that is not still."""
    rng = np.random.default_rng(seed)
    width, height = WIDTH // SCALE, HEIGHT // SCALE
    scene = random_scene(rng, width, height)
    positions = rng.integers(BANK) + np.cumsum(rng.normal(0.0, SHAKE, (SEGMENT, 2)), axis=0)
    for index, picture in enumerate(render(scene, width, height, np.linspace(0.0, 1.0, SEGMENT).tolist(), rng)):
        small = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame = small.reformat(width=WIDTH, height=HEIGHT, format="yuv420p")
        luma = np.frombuffer(frame.planes[0], np.uint8).reshape(HEIGHT, -1)[:, :WIDTH]  # type: ignore[call-overload]
        top, left = positions[index].astype(int)
        pattern = _cut(_texture(kind.texture), top, left) + _cut(_grain(kind.grain), *rng.integers(BANK))
        luma[:] = np.clip(luma + pattern, 0, 255)
        frame.pts, frame.time_base, frame.pict_type = index, Fraction(1, FPS), PictureType.NONE
        yield frame


def _cut(bank: NDArray[np.int16], top: int, left: int) -> NDArray[np.int16]:
    """The part of a bank, which repeats, that covers a frame."""
    rows = np.arange(top, top + HEIGHT) % bank.shape[0]
    columns = np.arange(left, left + WIDTH) % bank.shape[1]
    part: NDArray[np.int16] = bank[rows][:, columns]
    return part


@cache
def _texture(deviation: float) -> NDArray[np.int16]:
    rng = np.random.default_rng(7)
    total = np.zeros(BANK)
    for cell, weight in OCTAVES:
        coarse = rng.standard_normal((BANK[0] // cell, BANK[1] // cell))
        total += weight * coarse.repeat(cell, axis=0).repeat(cell, axis=1)
    texture: NDArray[np.int16] = np.rint(total * (deviation / total.std())).astype(np.int16)
    return texture


@cache
def _grain(deviation: float) -> NDArray[np.int16]:
    return np.rint(np.random.default_rng(8).normal(0.0, deviation, BANK)).astype(np.int16)


def _join(first: bytes, second: bytes) -> bytes:
    """One clip of two segments, whose packets are copied."""
    file = BytesIO()
    with (
        av.open(file, "w", format="mp4") as output,
        av.open(BytesIO(first), "r") as one,
        av.open(BytesIO(second), "r") as two,
    ):
        stream = output.add_stream_from_template(one.streams.video[0])
        for number, segment in enumerate((one, two)):
            for packet in segment.demux(video=0):
                if packet.pts is None or packet.dts is None:  # the end
                    continue
                offset = round(number * SEGMENT / FPS / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts + offset, packet.dts + offset, stream
                output.mux(packet)
    return file.getvalue()
