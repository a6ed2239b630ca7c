"""Benchmark of the sample model: its accuracy on held-out clips, through the real pipeline.

    python -m benchmarks.sample_accuracy [--clips 300]

A shard of held-out clips is written, probed, and captioned in both stages on vLLM, as the assets do it. The clips have
mixed sizes (160x120 to 1280x720, also in portrait), frame rates (10 to 60 fps), lengths (1 s to one window) and codecs
(H.264, VP9). The last line is JSON: `clips`, and the shares of exactly right stage-1 and stage-2 captions.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from caption_assets.captioning.caption_run import CaptionRun
from caption_assets.captioning.engine import EngineConfig, start_engine
from caption_assets.captioning.open_shard import Published, PublishedTable
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.recipe_file import STAGE1, STAGE2, STAGES
from caption_assets.captioning.shard_queue import RunObserver, caption_shards
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.errors import CaptionAssetsError
from caption_assets.models.cache import ensure_local
from caption_assets.models.mirror import publish
from caption_assets.sample.clips import SampleClip, encode, random_clip
from caption_assets.sources.manifest import probe_clips
from caption_assets.sources.shard import find_shard
from caption_assets.store.root import Root
from caption_assets.store.tables import publish_manifest
from caption_assets.video.window import Windowing
from caption_assets.workers.sandbox import Sandbox

FIRST_SEED = 50_000_000
"""First seed of the clips. Training and its own held-out examples use other seeds."""
SHARD = "held-out"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=300)
    count = parser.parse_args().clips
    with tempfile.TemporaryDirectory() as folder:
        root = Root.open(folder)
        clips = write_clips(Path(folder) / "shards" / SHARD, count)
        watcher = Watcher()
        asyncio.run(run(root, Path(folder) / "cache", watcher))
    shares = {table: compare(table, watcher.tables[table], clips) for table in (STAGE1.name, STAGE2.name)}
    print(json.dumps({"clips": count, "stage1": shares[STAGE1.name], "stage2": shares[STAGE2.name]}))


def write_clips(folder: Path, count: int) -> dict[str, SampleClip]:
    """Write the held-out clips into ``folder``, and return their descriptions by file name."""
    folder.mkdir(parents=True)
    clips = [random_clip(FIRST_SEED + index) for index in range(count)]
    named = {f"{index:05d}{clip.suffix}": clip for index, clip in enumerate(clips)}
    with ProcessPoolExecutor() as pool:
        for done, (name, data) in enumerate(zip(named, pool.map(encode, clips), strict=True), start=1):
            (folder / name).write_bytes(data)
            if done % 50 == 0:
                print(f"{done} of {count} clips written", flush=True)
    return named


async def run(root: Root, cache: Path, watcher: Watcher) -> None:
    """Run the chain on the held-out shard: weights, manifest, both stages."""
    recipe = Recipe()
    source = Root.open(f"{root.url}/shards")
    publish(root, recipe.variant, cache)
    with Sandbox() as sandbox:
        clips = probe_clips(sandbox, source, find_shard(source, SHARD), Windowing())
        publish_manifest(root, SHARD, (row for clip in clips for row in clip.rows), {})
    run = CaptionRun(root, source, recipe, STAGES)
    model = ensure_local(root, recipe.variant, cache)
    engine = EngineSupervisor(lambda: start_engine(model, recipe, EngineConfig()))
    with Sandbox() as sandbox:
        await caption_shards(engine, sandbox, run, [SHARD], [watcher])


class Watcher(RunObserver):
    """An observer that prints progress and keeps the published tables."""

    def __init__(self) -> None:
        self.tables: Mapping[str, PublishedTable] = {}

    def captioned(self, shard: str, done: int, windows: int, *, ok: bool) -> None:
        """Print the number of captioned windows, for every 50th."""
        if done % 50 == 0:
            print(f"{done} of {windows} windows captioned", flush=True)

    def published(self, shard: str, published: Published) -> None:
        """Keep the tables."""
        self.tables = published.tables

    def failed(self, shard: str, error: CaptionAssetsError) -> None:
        """Raise the error: there is nothing to compare."""
        raise error

    def skipped(self, shard: str, reason: str) -> None:
        """Raise an error: no other run writes the shard."""
        raise AssertionError(reason)

    def warned(self, message: str) -> None:
        """Print the warning."""
        print(message, flush=True)


def compare(table: str, published: PublishedTable, clips: dict[str, SampleClip]) -> float:
    """Share of exactly right captions. The wrong ones and the words that they miss are printed."""
    wrong: Counter[str] = Counter()
    mistakes = 0
    for row in published.rows:
        [scene] = clips[row.clip_key].scenes
        expected = scene.stage1 if table == STAGE1.name else scene.stage2
        if row.caption != expected:
            mistakes += 1
            clip = clips[row.clip_key]
            shape = f"{clip.width}x{clip.height}, {clip.frames} frames"
            print(f"{table} {row.clip_key} ({shape}): {row.caption!r}, expected {expected!r}")
            wrong.update(set(expected.split()) - set((row.caption or "").split()))
    print(f"{table}: {mistakes} of {len(published.rows)} wrong; words missed: {dict(wrong.most_common())}")
    return round(1 - mistakes / len(published.rows), 4)


if __name__ == "__main__":
    main()
