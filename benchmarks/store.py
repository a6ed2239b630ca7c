"""Benchmark of durability: publication of large tables, checkpoints, and reuse of stored rows.

    python -m benchmarks.store [--clips 150]

Tables of 1,000, 10,000 and 100,000 rows are published, read and reused, each size in its own process. Peak memory is
measured above that of the imports, and includes the rows. Then clips are captioned with the sample model, and the same
rows are written as checkpoints of the default size. Their time is reported as a fraction of the captioning's, although
a run writes checkpoints concurrently. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

from benchmarks.sample_accuracy import SHARD, Watcher, run, write_clips
from caption_assets.captioning.caption_run import CHECKPOINT_ROWS, MAX_ATTEMPTS
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.recipe_file import built_in
from caption_assets.captioning.reuse import EarlierRows, Reuse
from caption_assets.captioning.window_job import JobStatus, WindowJob
from caption_assets.store.checkpoints import write_checkpoint
from caption_assets.store.root import Root
from caption_assets.store.tables import (
    CaptionFile,
    CaptionRow,
    ManifestRow,
    Status,
    publish_captions,
    read_captions,
    window_id,
)

SIZES = 1_000, 10_000, 100_000
RECIPE = Recipe(graph=built_in("general"))
STAGE = RECIPE.stages[0]
WORDS = 60
"""Number of words of a caption, about that of Qwen2.5-VL's captions."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one table."""

    publish_seconds: float
    publish_peak_mb: float
    read_seconds: float
    reuse_seconds: float
    """Time to resolve all rows as reused."""
    peak_mb: float
    """Peak memory of publication, reading and reuse."""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=150)
    clips = parser.parse_args().clips
    costs = {}
    for size in SIZES:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            costs[size] = pool.submit(measure, size).result()
        print(f"{size} rows: {json.dumps({name: round(value, 2) for name, value in asdict(costs[size]).items()})}")
    figures = {"checkpoint_overhead": overhead(clips), "publish_peak_mb_100k": costs[SIZES[-1]].publish_peak_mb}
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


def measure(count: int) -> Cost:
    """Publish, read and reuse a stage-1 table of ``count`` rows."""
    base = peak_mb()
    windows = [manifest_row(number) for number in range(count)]
    rows = [caption_row(window) for window in windows]
    with tempfile.TemporaryDirectory() as folder:
        root = Root.open(folder)
        begun = time.monotonic()
        publish_captions(root, STAGE.name, SHARD, rows, [window.key for window in windows], {}, STAGE.columns)
        publish_seconds, publish_peak = time.monotonic() - begun, peak_mb() - base
        rows.clear()
        begun = time.monotonic()
        found = read_captions(root, STAGE.name, SHARD)
        read_seconds = time.monotonic() - begun
    begun = time.monotonic()
    earlier = EarlierRows([CaptionFile(STAGE.name, found, {})])
    reuse = Reuse(RECIPE, MAX_ATTEMPTS, earlier, engine_settings="")
    jobs = [WindowJob(window, list, (STAGE,)) for window in windows]
    for job in jobs:
        reuse.resolve(job)
    if not all(job.status is JobStatus.FINISHED for job in jobs):
        raise RuntimeError("published rows were not reused")
    return Cost(publish_seconds, publish_peak, read_seconds, time.monotonic() - begun, peak_mb() - base)


def manifest_row(number: int) -> ManifestRow:
    """A manifest row like that of a real clip."""
    key = f"camera-{number % 7}/clip-{number:06}.mp4"
    return ManifestRow(
        key, 0, window_id(key, 0, "tag"), f"tag-{number}", 2 << 20, Status.OK, start_frame=0, end_frame=256
    )


def caption_row(window: ManifestRow) -> CaptionRow:
    """A caption row like the captioner's, with a unique caption."""
    return CaptionRow(
        clip_key=window.clip_key,
        window_index=window.window_index,
        window_id=window.window_id,
        start_seconds=0.0,
        end_seconds=10.67,
        status=Status.OK,
        caption=" ".join(f"word-{word}-{window.clip_key[-10:]}" for word in range(WORDS)),
        finish_reason="stop",
        model=RECIPE.variant.hub_id,
        revision=RECIPE.variant.revision,
        prompt_name=RECIPE.graph.name,
        sampling=asdict(RECIPE.generation),
        frame_indices=tuple(range(0, 256, 12)),
        frame_fps=2.0,
        frame_width=448,
        frame_height=252,
        prompt_tokens=1500,  # must fit the context of the sample model, or the row is not reused
        cached_tokens=0,
        output_tokens=80,
        attempts=1,
        fingerprint=RECIPE.fingerprint(STAGE, window),
    )


def peak_mb() -> float:
    """Peak resident memory of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6  # Linux counts in KiB


class Clock(Watcher):
    """An observer that records when windows finish: the engine runs between the first and the last."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def captioned(self, shard: str, done: int, windows: int, *, ok: bool) -> None:
        """Record the time."""
        self.times.append(time.monotonic())


def overhead(clips: int) -> float:
    """The time of checkpoints as a fraction of the captioning's."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        root = Root.open(folder)
        write_clips(Path(folder) / "shards" / SHARD, clips)
        asyncio.run(run(root, Path(folder) / "cache", clock))
        captioning = clock.times[-1] - clock.times[0]
        begun = time.monotonic()
        tables = {table: published.rows for table, published in clock.tables.items()}
        columns = {stage.name: stage.columns for stage in Recipe().stages}
        for number, rows in enumerate(in_parts(tables, CHECKPOINT_ROWS)):
            write_checkpoint(root, SHARD, 1, number, rows, {}, columns)
        writing = time.monotonic() - begun
    print(f"{clips} clips: captioning {captioning:.1f} s, checkpoints {writing:.3f} s")
    return writing / captioning


def in_parts(tables: dict[str, Sequence[CaptionRow]], size: int) -> list[dict[str, Sequence[CaptionRow]]]:
    """The tables, split into checkpoints of ``size`` windows."""
    windows = len(next(iter(tables.values())))
    return [{table: rows[begin : begin + size] for table, rows in tables.items()} for begin in range(0, windows, size)]


if __name__ == "__main__":
    main()
