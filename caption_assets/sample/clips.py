"""Clips of the toy world: real video files, deterministic for a seed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from itertools import chain
from typing import cast

import av
import numpy as np
from av.video.stream import VideoStream

from caption_assets.sample.world import Frame, Scene, random_scene, render

CODECS = {"h264": ("libx264", "mp4"), "vp9": ("libvpx-vp9", "webm")}
"""Encoder and container of each codec."""
FRAME_RATES = (10, 12, 15, 24, 25, 30, 50, 60)
MAX_SCENE_FRAMES = 256
"""Maximum number of frames of a scene: one window."""


@dataclass(frozen=True, slots=True)
class SampleClip:
    """The description of a clip: one scene for each of its windows."""

    scenes: tuple[Scene, ...]
    frames: int
    """Number of frames of each scene."""
    fps: int
    width: int
    """Width in pixels, even."""
    height: int
    """Height in pixels, even."""
    codec: str
    """A key of ``CODECS``."""
    crf: int
    """Constant rate factor of the encoder: higher means lower quality."""
    seed: int
    """Seed of the noise."""

    @property
    def suffix(self) -> str:
        """Suffix of the file name, with its dot."""
        return "." + CODECS[self.codec][1]


def random_clip(seed: int, *, shortest: tuple[int, int] = (120, 720), longest_seconds: float = 25.6) -> SampleClip:
    """Draw a clip of one window, of random size, aspect ratio, length, frame rate (10 to 60 fps), codec and quality.

    Args:
        seed: the same seed gives the same clip.
        shortest: minimum and maximum length of the shorter side, in pixels.
        longest_seconds: maximum length, in seconds. The minimum is 1 s.
    """
    rng = np.random.default_rng(seed)
    width, height = random_size(rng, shortest)
    fps, frames = random_length(rng, longest_seconds)
    return SampleClip(
        scenes=(random_scene(rng, width, height),),
        frames=frames,
        fps=fps,
        width=width,
        height=height,
        codec="vp9" if rng.random() < 0.3 else "h264",
        crf=int(rng.integers(18, 30)),
        seed=seed,
    )


def random_size(rng: np.random.Generator, shortest: tuple[int, int]) -> tuple[int, int]:
    """Random even width and height, with an aspect ratio from 9:16 to 16:9 and a shorter side within limits."""
    side = float(rng.uniform(*shortest))
    ratio = float(np.exp(rng.uniform(0.0, np.log(16 / 9))))
    sides = (side * ratio, side) if rng.random() < 0.6 else (side, side * ratio)
    width, height = (int(s) // 2 * 2 for s in sides)
    return width, height


def random_length(rng: np.random.Generator, longest_seconds: float) -> tuple[int, int]:
    """Random frame rate and number of frames. Short lengths are more frequent."""
    fps = int(rng.choice(FRAME_RATES))
    longest = min(MAX_SCENE_FRAMES / fps, longest_seconds)
    seconds = float(np.exp(rng.uniform(0.0, np.log(longest))))
    return fps, min(max(round(seconds * fps), fps), MAX_SCENE_FRAMES)


def encode(clip: SampleClip) -> bytes:
    """Encode a clip as a video file.

    The encoder uses one thread, so that the same clip gives the same bytes with the same build of FFmpeg.
    """
    rng = np.random.default_rng(clip.seed)
    times = [index / (clip.frames - 1) for index in range(clip.frames)]
    frames = chain.from_iterable(render(scene, clip.width, clip.height, times, rng) for scene in clip.scenes)
    return encode_frames(frames, clip.width, clip.height, clip.fps, clip.codec, clip.crf)


def encode_frames(frames: Iterable[Frame], width: int, height: int, fps: int, codec: str, crf: int) -> bytes:
    """Encode uint8 RGB frames of shape (height, width, 3) as a video file."""
    encoder, container_format = CODECS[codec]
    file = BytesIO()
    # Without bitexact, the WebM muxer writes random ids.
    with av.open(file, "w", format=container_format, container_options={"fflags": "bitexact"}) as container:
        stream = cast(VideoStream, container.add_stream(encoder, rate=fps, options=_options(codec, crf)))
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, fps)
        stream.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def _options(codec: str, crf: int) -> dict[str, str]:
    if codec == "h264":
        # With lookahead, x264 produced up to seven different files for the same frames, even with one thread.
        return {"preset": "veryfast", "crf": str(crf), "x264-params": "threads=1:rc-lookahead=0:mbtree=0"}
    return {"deadline": "realtime", "cpu-used": "8", "crf": str(crf), "b": "0"}
