"""Benchmark of manifests: bytes read, time and memory, for a small shard and a large one.

    python -m benchmarks.manifest [--small 1000] [--large 20000]

The clips are hard links to a few MP4s of at least 2 MB: H.264, HEVC and MPEG-4 with sound, with the index at the
beginning or the end. A new process makes each manifest. The last line is JSON: `bytes_read_fraction`, and the large
shard's time and peak memory as multiples of the small one's.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.video.stream import VideoStream

from caption_assets.sources.manifest import PROBE_WORKERS, probe_clips
from caption_assets.sources.shard import find_shard
from caption_assets.store.root import Root
from caption_assets.store.tables import ManifestRow, publish_manifest
from caption_assets.video.window import Windowing
from caption_assets.workers.sandbox import Sandbox

SIZE, FRAMES, FPS = (640, 360), 125, 25
MIN_BYTES = 2 << 20
CODECS = {
    "libx264": {"preset": "ultrafast", "bf": "2"},
    "libx265": {"preset": "ultrafast", "x265-params": "bframes=2:log-level=none"},
    "mpeg4": {"bf": "2"},
}


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one manifest."""

    rows: int
    seconds: float
    peak_bytes: int
    """Peak resident memory of the process."""
    size: int
    """Total size of the clips, in bytes."""
    bytes_read: int


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=1000)
    parser.add_argument("--large", type=int, default=20_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clips = write_clips(Path(folder) / "clips")
        small, large = (measure(Path(folder), clips, count) for count in (options.small, options.large))
    figures = {
        "bytes_read_fraction": large.bytes_read / large.size,
        "time_ratio_20k_1k": large.seconds / small.seconds,
        "rss_ratio_20k_1k": large.peak_bytes / small.peak_bytes,
    }
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


def write_clips(folder: Path) -> list[Path]:
    """Write one clip for each codec and each place of the index."""
    folder.mkdir()
    clips: list[Path] = []
    for (codec, options), movflags in product(CODECS.items(), ({}, {"movflags": "faststart"})):
        clip = folder / f"{len(clips)}.mp4"
        write_clip(clip, codec, options, movflags)
        if clip.stat().st_size < MIN_BYTES:
            raise RuntimeError(f"{clip} has {clip.stat().st_size} bytes, fewer than {MIN_BYTES}: raise its bit rate")
        clips.append(clip)
    return clips


def write_clip(path: Path, codec: str, options: dict[str, str], movflags: dict[str, str]) -> None:
    """Write five seconds of moving noise with a silent sound track."""
    width, height = SIZE
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    with av.open(str(path), "w", options=movflags) as output:
        video = cast(VideoStream, output.add_stream(codec, rate=FPS, options={**options, "b": "5M"}))
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        sound = output.add_stream("aac", rate=16_000)
        for index in range(FRAMES):
            picture = av.VideoFrame.from_ndarray(np.roll(noise, 2 * index, axis=1) // 2 + noise // 8, format="rgb24")
            picture.pts, picture.time_base = index, Fraction(1, FPS)
            output.mux(video.encode(picture))
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 16_000 // FPS), np.float32), format="fltp", layout="mono")
            silence.sample_rate, silence.pts, silence.time_base = 16_000, index * 16_000 // FPS, Fraction(1, 16_000)
            output.mux(sound.encode(silence))
        output.mux(video.encode(None))
        output.mux(sound.encode(None))


def measure(folder: Path, clips: list[Path], count: int) -> Cost:
    """Measure the manifest of a shard of ``count`` clips, in a new process."""
    shard = folder / "shards" / f"of-{count}"
    shard.mkdir(parents=True)
    for index in range(count):
        os.link(clips[index % len(clips)], shard / f"{index:06}.mp4")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        cost = pool.submit(make_manifest, str(folder), shard.name).result()
    print(
        f"{count} clips: {cost.rows} rows, {cost.seconds:.1f} s ({count / cost.seconds:.0f} clips/s), "
        f"{cost.bytes_read / count:,.0f} of {cost.size / count:,.0f} bytes a clip read, "
        f"peak memory {cost.peak_bytes / 2**20:.0f} MiB",
        flush=True,
    )
    return cost


def make_manifest(folder: str, key: str) -> Cost:
    """Publish the manifest of one shard, and return its cost to this process."""
    begun = time.monotonic()
    source = Root.open(f"{folder}/shards")
    rows = size = bytes_read = 0

    def counted() -> Iterator[ManifestRow]:
        nonlocal rows, size, bytes_read
        with Sandbox(workers=PROBE_WORKERS) as sandbox:
            for clip in probe_clips(sandbox, source, find_shard(source, key), Windowing()):
                rows, size, bytes_read = rows + len(clip.rows), size + clip.size, bytes_read + clip.bytes_read
                yield from clip.rows

    publish_manifest(Root.open(f"{folder}/root"), key, counted(), {})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    return Cost(rows, time.monotonic() - begun, peak, size, bytes_read)


if __name__ == "__main__":
    main()
