"""Benchmark of the automation: durations of ticks over many shards.

    python -m benchmarks.automation [--shards 10000] [--keep FOLDER]

On SQLite, the sensor ticks until all shards are registered. Every other shard then gets tables and records. The sensor
ticks with nothing new, and the schedule with half of the shards to request. All shards are completed, and the schedule
ticks twice more. `reconcile` compares all shards. Then the tables' event log is wiped, and the schedule ticks once more
and records stored tables. `schedule_ratio_to_a_tenth` is the duration of the schedule's first tick over the same for a
tenth of the shards.

With --keep the instance stays in the folder, for Dagster's webserver. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import dagster as dg

from caption_assets.assets.clip_manifest import manifest_code_version
from caption_assets.automation.new_shards import build_new_shards
from caption_assets.automation.reconcile import compare
from caption_assets.automation.schedule import build_backfill
from caption_assets.captioning.open_shard import direct_inputs
from caption_assets.dagster_lib.metadata import ROW_COUNT
from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.provenance import input_version_tags
from caption_assets.dagster_lib.shard_events import observed_versions
from caption_assets.models.weights import MANIFEST, WEIGHTS, WeightsManifest
from caption_assets.resources import build_storage
from caption_assets.settings import Settings
from caption_assets.store.root import Root
from caption_assets.store.tables import (
    CLIP_MANIFEST,
    CaptionRow,
    ManifestRow,
    Status,
    publish_captions,
    publish_manifest,
    table_path,
)
from caption_assets.store.versions import TableVersions

METADATA: dict[str, dg.MetadataValue | int] = {
    ROW_COUNT: 300,
    "captions": dg.MetadataValue.md("A red square moves. " * 30),
}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=10_000, help="number of shards (default 10,000)")
    parser.add_argument("--keep", type=Path, help="folder for the instance (by default a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        few = measure(Path(folder) / "few", options.shards // 10)
        many = measure(options.keep or Path(folder) / "many", options.shards)
    figures = {**many, "schedule_ratio_to_a_tenth": many["schedule_tick_s"] / few["schedule_tick_s"]}
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}))


def measure(folder: Path, count: int) -> dict[str, float]:
    """Durations of the ticks over ``count`` shards, in seconds."""
    source = folder / "shards"
    source.mkdir(parents=True)
    for number in range(count):
        (source / f"shard-{number:05}.jsonl").write_text(f'{{"uri": "{number}.mp4"}}\n')
    settings = Settings(root=str(folder), recipe="general", shard_quiet_minutes=0)
    (folder / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(folder / "dagster")) as instance:
        registering = []
        events = 1
        while events or len(Project().registered(instance)) < count:
            seconds, events = sensor_tick(instance, settings)
            registering.append(seconds)
        root = Root.open(str(folder))
        weights = WeightsManifest(settings.variant.hub_id, settings.variant.revision, ())
        root.write(f"{WEIGHTS}/{settings.variant.folder}/{MANIFEST}", weights.to_json().encode())
        complete(instance, settings, root, [f"shard-{number:05}" for number in range(0, count, 2)])
        quiet, _ = sensor_tick(instance, settings)
        half, requests = schedule_tick(instance, settings)
        complete(instance, settings, root, [f"shard-{number:05}" for number in range(1, count, 2)])
        first, _ = schedule_tick(instance, settings)
        whole, _ = schedule_tick(instance, settings)
        begun = time.monotonic()
        with redirect_stdout(StringIO()):
            compare(instance, settings, root)
        comparison = time.monotonic() - begun
        tables = (CLIP_MANIFEST, *(stage.name for stage in settings.caption_recipe.stages))
        instance.wipe_assets([Project().key(table) for table in tables])
        recording, _ = schedule_tick(instance, settings)
    print(
        f"{count} shards: {len(registering)} ticks to register them, the longest {max(registering):.1f} s; "
        f"{quiet:.1f} s with nothing new; schedule {half:.1f} s with half of them complete, {requests} runs requested; "
        f"{first:.1f} s with all complete and half of the records new, {whole:.1f} s with none new, {recording:.1f} s "
        f"without records; reconcile {comparison:.1f} s",
        flush=True,
    )
    return {
        "registering_tick_s": max(registering),
        "quiet_tick_s": quiet,
        "schedule_tick_s": half,
        "schedule_tick_half_new_s": first,
        "schedule_tick_all_whole_s": whole,
        "schedule_tick_no_records_s": recording,
        "reconcile_s": comparison,
    }


def schedule_tick(instance: dg.DagsterInstance, settings: Settings) -> tuple[float, int]:
    """Duration of a tick of the schedule, in seconds, and the number of runs that it requests."""
    begun = time.monotonic()
    with dg.build_schedule_context(instance, scheduled_execution_time=datetime.now(UTC)) as context:
        requests = build_backfill(settings).evaluate_tick(context).run_requests
    return time.monotonic() - begun, len(requests or ())


def sensor_tick(instance: dg.DagsterInstance, settings: Settings) -> tuple[float, int]:
    """Duration of a tick of the sensor and of the daemon's work for it, in seconds, and the number of asset events."""
    begun = time.monotonic()
    with dg.build_sensor_context(instance) as context:
        result = build_new_shards(settings)(context, storage=build_storage(settings))
    assert isinstance(result, dg.SensorResult)
    for request in result.dynamic_partitions_requests or ():
        instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
    for event in result.asset_events:
        instance.report_runless_asset_event(event)
    return time.monotonic() - begun, len(result.asset_events)


def complete(instance: dg.DagsterInstance, settings: Settings, root: Root, shards: Sequence[str]) -> None:
    """Publish and record all tables of shards, with as much metadata as a run."""
    content = observed_versions(instance, Project())
    window = ManifestRow("a.mp4", 0, "id", "t", 1, Status.OK, width=64, height=64)
    window = replace(window, start_frame=0, end_frame=8, start_seconds=0.0, end_seconds=1.0)
    row = CaptionRow(*window.key, window.window_id, 0.0, 1.0, Status.OK, caption="A red square.", attempts=1)
    captions = {}
    for stage in settings.caption_recipe.stages:
        table = stage.name
        inputs = {name: "m" if name == CLIP_MANIFEST else "c" for name in direct_inputs(stage)}
        versions = TableVersions("c", settings.caption_recipe.version(stage), inputs)
        captions[table] = (
            versions,
            root.read(publish_captions(root, table, "x", [row], [row.key], versions.file_metadata, stage.columns)),
        )
        root.remove_folder(f"{table}/shard=x")
    for shard in shards:
        manifest = TableVersions("m", manifest_code_version(settings.windowing), {"shards": content[shard]})
        publish_manifest(root, shard, [window], manifest.file_metadata)
        record(instance, CLIP_MANIFEST, shard, manifest)
        for table, (versions, file) in captions.items():
            root.write(table_path(table, shard), file)
            record(instance, table, shard, versions)


def record(instance: dg.DagsterInstance, table: str, shard: str, versions: TableVersions) -> None:
    """Record a table as a run does."""
    tags = {"dagster/data_version": versions.data, "dagster/code_version": versions.code}
    event = dg.AssetMaterialization(
        Project().key(table),
        partition=shard,
        metadata=METADATA,
        tags=tags | input_version_tags(Project(), versions),
    )
    instance.report_runless_asset_event(event)


if __name__ == "__main__":
    main()
