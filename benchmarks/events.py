"""Benchmark of Dagster's event log: bytes for each captioned shard, with manifest, captions and checks.

    python -m benchmarks.events --shards 8

The captions are stored beforehand and reused by the run, so that no engine is needed. With an engine, a shard has a few
progress messages and five more metadata entries. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import dagster as dg
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from caption_assets.captioning.open_shard import file_metadata
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.recipe_file import built_in
from caption_assets.captioning.window_job import WindowJob
from caption_assets.definitions import build_definitions
from caption_assets.sample.shards import write_shards
from caption_assets.settings import Settings
from caption_assets.store.root import Root
from caption_assets.store.tables import ManifestRow, Status, publish_captions, read_manifest

WORDS = 80
"""Number of words in a stage-1 caption, as Qwen2.5-VL-7B writes."""
VOCABULARY = Path(__file__).read_text().split()
RECIPE = Recipe(graph=built_in("general"))


def main() -> None:
    """Run the assets and print the size of the event log."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shards", type=int, default=8)
    shards = parser.parse_args().shards
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "dagster").mkdir()
        with dg.DagsterInstance.local_temp(str(folder / "dagster")) as instance:
            prepare(folder / "root", shards)
            run(instance, folder / "root", "shard_index")
            keys = instance.get_dynamic_partitions("shards")
            run(instance, folder / "root", "clip_manifest", shards=(keys[0], keys[-1]))
            for key in keys:
                store_captions(Root.open(str(folder / "root")), key)
            tables = [stage.name for stage in RECIPE.stages]
            run(instance, folder / "root", *tables, shards=(keys[0], keys[-1]))
            kinds = Counter[str]()
            for kind, size in events(folder / "dagster"):
                kinds[kind] += size
    for kind, size in kinds.most_common():
        print(f"{kind or 'messages':40} {size / shards:10,.0f} bytes a shard")
    print(json.dumps({"shards": shards, "bytes_a_shard": round(kinds.total() / shards)}))


def prepare(root: Path, shards: int) -> None:
    """Write copies of a sample shard."""
    with TemporaryDirectory() as sample:
        write_shards(Path(sample))
        for number in range(shards):
            shutil.copytree(Path(sample) / "sample-folder", root / "shards" / f"shard-{number:04}")


def run(instance: dg.DagsterInstance, root: Path, *assets: str, shards: tuple[str, str] | None = None) -> None:
    """Materialize assets, for a range of shards if there is one."""
    ends = dict(zip((ASSET_PARTITION_RANGE_START_TAG, ASSET_PARTITION_RANGE_END_TAG), shards or (), strict=False))
    job = build_definitions(Settings(root=str(root), recipe=RECIPE.graph.name)).get_implicit_global_asset_job_def()
    selection = [dg.AssetKey(asset) for asset in assets]
    job.execute_in_process(asset_selection=selection, tags=ends, instance=instance)


def store_captions(root: Root, shard: str) -> None:
    """Publish captions of a shard's manifest, as an earlier run would."""
    manifest = read_manifest(root, shard)
    jobs = [_captioned(window) for window in manifest]
    for stage in RECIPE.stages:
        rows = [job.row(stage) for job in jobs]
        keys = [row.key for row in manifest]
        publish_captions(root, stage.name, shard, rows, keys, file_metadata(RECIPE, stage), stage.columns)


def _captioned(window: ManifestRow) -> WindowJob:
    """A finished job of a window. Each caption is longer than the previous stage's."""
    job = WindowJob(window, list, RECIPE.stages)
    if window.status is Status.FAILED:
        job.fail(RECIPE, window.error_kind or "", window.error or "")
    for number, stage in enumerate(job.missing, start=1):
        words = Random(f"{stage.name} {window.window_id}").choices(VOCABULARY, k=number * WORDS)
        row = replace(job.blank_row(RECIPE, stage), status=Status.OK, caption=" ".join(words), attempts=1)
        job.add_row(stage, replace(row, finish_reason="stop"))
    return job


def events(folder: Path) -> Iterator[tuple[str, int]]:
    """Kind and length of each event. Events are in a run's file and in the index; they are counted once."""
    for file in (folder / "history" / "runs").glob("*.db"):
        if file.stem != "index":
            with sqlite3.connect(file) as database:
                yield from database.execute("SELECT coalesce(dagster_event_type, ''), length(event) FROM event_logs")


if __name__ == "__main__":
    main()
