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
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import dagster as dg
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from caption_assets.captioning.open_shard import file_metadata
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.recipe_file import STAGE1, STAGE2
from caption_assets.captioning.stages import Stage
from caption_assets.captioning.window_job import blank_row, upstream_failed_row
from caption_assets.definitions import build_definitions
from caption_assets.sample.shards import write_shards
from caption_assets.settings import Settings
from caption_assets.store.root import Root
from caption_assets.store.tables import CaptionRow, ManifestRow, Status, publish_captions, read_manifest

WORDS = 80
"""Number of words in a stage-1 caption, as Qwen2.5-VL-7B writes."""
VOCABULARY = Path(__file__).read_text().split()


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
            run(instance, folder / "root", STAGE1.name, STAGE2.name, shards=(keys[0], keys[-1]))
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
    job = build_definitions(Settings(root=str(root))).get_implicit_global_asset_job_def()
    selection = [dg.AssetKey(asset) for asset in assets]
    job.execute_in_process(asset_selection=selection, tags=ends, instance=instance)


def store_captions(root: Root, shard: str) -> None:
    """Publish captions of a shard's manifest, as an earlier run would."""
    recipe, manifest = Recipe(), read_manifest(root, shard)
    first = [_row(recipe, STAGE1, window) for window in manifest]
    second = [
        _row(recipe, STAGE2, window, {STAGE1.name: before})
        if before.caption
        else upstream_failed_row(recipe, STAGE2, window)
        for window, before in zip(manifest, first, strict=True)
    ]
    for stage, rows in ((STAGE1, first), (STAGE2, second)):
        publish_captions(root, stage.name, shard, rows, [row.key for row in manifest], file_metadata(recipe, stage))


def _row(
    recipe: Recipe, stage: Stage, window: ManifestRow, needed: Mapping[str, CaptionRow] | None = None
) -> CaptionRow:
    blank = blank_row(recipe, stage, window, needed)
    if window.status is Status.FAILED:
        return replace(blank, error_kind=window.error_kind, error=window.error)
    words = Random(f"{stage.number} {window.window_id}").choices(VOCABULARY, k=stage.number * WORDS)
    return replace(blank, status=Status.OK, caption=" ".join(words), finish_reason="stop", attempts=1)


def events(folder: Path) -> Iterator[tuple[str, int]]:
    """Kind and length of each event. Events are in a run's file and in the index; they are counted once."""
    for file in (folder / "history" / "runs").glob("*.db"):
        if file.stem != "index":
            with sqlite3.connect(file) as database:
                yield from database.execute("SELECT coalesce(dagster_event_type, ''), length(event) FROM event_logs")


if __name__ == "__main__":
    main()
