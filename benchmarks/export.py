"""Benchmark of the export: its memory by number of windows, and its throughput beside a plain copy of the same bytes.

    python -m benchmarks.export [--windows 25000] [--kb 150] [--pairs 3] [--format webdataset] [--cut none]

Each clip is a video of its own with one window or, if windows are cut, with two that begin at keyframes. An export runs
in a process of its own; its memory is the sum of the proportional set sizes of that process and its workers, at most.
It is measured for a fifth of the windows too. Exports and copies of all clips with shutil.copyfile alternate; the times
are medians, and an export's is that of ``export_shard``. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil

from benchmarks.gallery import caption, sentence
from caption_assets.captioning.recipe_file import built_in
from caption_assets.export.config import Cut, CutConfig, ExportConfig, Format
from caption_assets.export.dataset_shard import export_shard
from caption_assets.export.index import DATASET
from caption_assets.store.content_tag import ContentTag
from caption_assets.store.root import Root
from caption_assets.store.tables import ManifestRow, Status, publish_captions, publish_manifest, window_id
from caption_assets.video.probe import probe
from caption_assets.video.window import Windowing, split_into_windows
from tests.videos import moving_video

SHARD = "large"
GRAPH = built_in("general")
FRAMES = 48
VIDEOS = 4
"""Number of different videos."""
FILE_BYTES = 1 << 30
TEXTS = 100
"""Number of different captions."""
PROPERTIES = (
    "codec", "width", "height", "rotation", "mirrored", "pixel_format", "bit_depth", "interlaced", "has_audio",
    "variable_fps",
)  # fmt: skip
"""Columns of the manifest that a probe has under the same names."""
INTERVAL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Exported:
    """The costs of an export."""

    seconds: float
    cpu_seconds: float
    pss_mb: float
    """Maximum memory of its processes."""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=25_000)
    parser.add_argument("--kb", type=int, default=150, help="approximate size of a clip")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--format", type=Format, default=Format.WEBDATASET)
    parser.add_argument("--cut", type=Cut, default=Cut.NONE)
    parser.add_argument("--folder", type=Path, help="folder for clips and copies; by default a temporary one")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    export = ExportConfig(options.format, FILE_BYTES, GRAPH, cut=CutConfig(options.cut))
    if options.child:
        run_export(options.child, export)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        few, many = folder / "few", folder / "many"
        for path, windows in ((few, options.windows // 5), (many, options.windows)):
            write_shard(path, windows, options.kb * 1000, per_clip=1 if options.cut is Cut.NONE else 2)
        figures = {"windows": options.windows, "clip_kb": clip_bytes(many) / len(clips(many)) / 1e3}
        figures["pss_mb_few"] = timed_export(few).pss_mb
        seconds: list[tuple[float, float]] = []
        cpu: list[float] = []
        for number in range(options.pairs):
            if number % 2:
                exported, copied = timed_export(many), timed_copy(many)
            else:
                copied, exported = timed_copy(many), timed_export(many)
            seconds.append((copied, exported.seconds))
            figures["pss_mb_many"] = max(figures.get("pss_mb_many", 0.0), exported.pss_mb)
            print(f"copy {copied:.1f} s; {exported}", flush=True)
            cpu.append(exported.cpu_seconds)
        figures["copy_seconds"], figures["export_seconds"] = map(statistics.median, zip(*seconds, strict=True))
        figures["copy_mb_per_second"] = clip_bytes(many) / figures["copy_seconds"] / 1e6
        figures["throughput_of_copy"] = statistics.median(copy / export for copy, export in seconds)
        figures["export_ms_per_window"] = 1e3 * figures["export_seconds"] / options.windows
        figures["export_cpu_ms_per_window"] = 1e3 * statistics.median(cpu) / options.windows
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}))


def write_shard(folder: Path, windows: int, size: int, *, per_clip: int) -> None:
    """Write clips of about this size, and publish their tables."""
    root, source = Root.open(str(folder / "root")), folder / "clips"
    source.mkdir(parents=True)
    videos = [video(size, number) for number in range(VIDEOS)]
    probed = [probe(data) for data in videos]
    rows: list[ManifestRow] = []
    for number in range(windows // per_clip):
        data, found = videos[number % VIDEOS], probed[number % VIDEOS]
        data += box(b"free", struct.pack(">Q", number))  # makes the clip unique
        key, tag = f"{number:06}.mp4", ContentTag(data).hexdigest()
        (source / key).write_bytes(data)
        properties = {name: getattr(found, name) for name in PROPERTIES}
        for one in split_into_windows(found.times, found.seconds, Windowing(FRAMES // per_clip, 12)):
            row = ManifestRow(
                key,
                one.index,
                window_id(key, one.index, tag),
                tag,
                len(data),
                Status.OK,
                uri=key,
                clip_frames=found.frames,
                clip_fps=found.fps,
                clip_seconds=found.seconds,
                start_frame=one.start_frame,
                end_frame=one.end_frame,
                start_seconds=one.start_seconds,
                end_seconds=one.end_seconds,
            )
            rows.append(replace(row, **properties))
    publish_manifest(root, SHARD, rows, {})
    rng = np.random.default_rng(0)
    texts = [sentence(rng, 60) for _ in range(TEXTS)]
    for stage in GRAPH.stages:
        captions = [caption(row, texts[number % TEXTS]) for number, row in enumerate(rows)]
        publish_captions(root, stage.name, SHARD, captions, [row.key for row in rows], {}, stage.columns)


def video(size: int, number: int) -> bytes:
    """A video of about this size, with a keyframe for each half; at most half of it is padding."""
    side = 16 * max(round((size / FRAMES) ** 0.5 / 16 * 1.2), 4) + 16 * number
    options = {"preset": "veryfast", "x264-params": f"keyint={FRAMES // 2}:min-keyint={FRAMES // 2}:scenecut=0"}
    data = moving_video(FRAMES, size=(side, side), options=options)
    return data + box(b"free", bytes(max(size - len(data), 0)))


def box(kind: bytes, content: bytes) -> bytes:
    """A box of MP4."""
    return struct.pack(">I4s", 8 + len(content), kind) + content


def clips(folder: Path) -> list[Path]:
    """The clips of a shard."""
    return sorted((folder / "clips").iterdir())


def clip_bytes(folder: Path) -> int:
    """Total size of the clips."""
    return sum(path.stat().st_size for path in clips(folder))


def timed_copy(folder: Path) -> float:
    """Seconds to copy all clips into another folder."""
    paths, target = clips(folder), folder / "copies"
    target.mkdir()
    os.sync()  # earlier writes must not delay these
    begun = time.monotonic()
    for path in paths:
        shutil.copyfile(path, target / path.name)
    seconds = time.monotonic() - begun
    shutil.rmtree(target)
    return seconds


def timed_export(folder: Path) -> Exported:
    """Export the shard in a process of its own."""
    os.sync()
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.export", *sys.argv[1:], "--child", str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    ) as process:
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, memory_mb(psutil.Process(process.pid)))
            time.sleep(INTERVAL_SECONDS)
        assert process.stdout is not None
        seconds, cpu_seconds = map(float, process.stdout.read().split())
    shutil.rmtree(folder / "root" / DATASET)
    return Exported(seconds, cpu_seconds, peak)


def memory_mb(process: psutil.Process) -> float:
    """Proportional set size of a process and its children, in MB."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.Error):
            total += one.memory_full_info().pss
    return total / 1e6


def cpu_seconds() -> float:
    """CPU time of this process and its children that ended, in seconds."""
    found = os.times()
    return found.user + found.system + found.children_user + found.children_system


def run_export(folder: Path, export: ExportConfig) -> None:
    """Export the shard once, and print the seconds of wall and CPU time."""
    root, source = Root.open(str(folder / "root")), Root.open(str(folder / "clips"))
    begun, cpu = time.monotonic(), cpu_seconds()
    index = export_shard(root, source, SHARD, export).index
    print(time.monotonic() - begun, cpu_seconds() - cpu)
    assert index.left_out == {}


if __name__ == "__main__":
    main()
