"""How long the automation takes over many shards.

    python -m benchmarks.automation [--shards 10000] [--keep FOLDER]

A source of that many shards, a Dagster instance on SQLite, ticks of the sensor until all are registered,
materializations of every other one, then ticks of the sensor with nothing new and of the schedule with half of the
shards to request. The ratio of the schedule's tick to one over a tenth of the shards tells how it grows with them.

With --keep the instance stays in the folder, to be looked at with Dagster's webserver. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg

from caption_assets.assets.project import Project
from caption_assets.automation.backfill import build_backfill
from caption_assets.automation.new_shards import build_new_shards
from caption_assets.resources import build_storage
from caption_assets.settings import Settings

ASSETS = ("clip_manifest", "stage1_captions", "stage2_captions")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=10_000, help="how many (default 10,000)")
    parser.add_argument("--keep", type=Path, help="folder for the instance")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        few = measure(Path(folder) / "few", options.shards // 10)
        many = measure(options.keep or Path(folder) / "many", options.shards)
    figures = {**many, "schedule_ratio_to_a_tenth": many["schedule_tick_s"] / few["schedule_tick_s"]}
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}))


def measure(folder: Path, count: int) -> dict[str, float]:
    """Seconds of ticks over ``count`` shards."""
    source = folder / "shards"
    source.mkdir(parents=True)
    for number in range(count):
        (source / f"shard-{number:05}.jsonl").write_text(f'{{"uri": "{number}.mp4"}}\n')
    settings = Settings(root=str(folder), shard_quiet_minutes=0)
    (folder / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(folder / "dagster")) as instance:
        registering = []
        while len(Project().registered(instance)) < count:
            registering.append(look(instance, settings))
        for asset in ASSETS:
            materialize(instance, asset, range(0, count, 2))
        instance.report_runless_asset_event(
            dg.AssetMaterialization("model_weights", tags={"dagster/code_version": settings.variant.folder})
        )
        quiet = look(instance, settings)
        begun = time.monotonic()
        context = dg.build_schedule_context(instance, scheduled_execution_time=datetime.now(UTC))
        requests = build_backfill(settings).evaluate_tick(context).run_requests
        schedule = time.monotonic() - begun
    print(
        f"{count} shards: {len(registering)} ticks to register them, the longest {max(registering):.1f} s; with "
        f"nothing new {quiet:.1f} s; the schedule {schedule:.1f} s, {len(requests or ())} runs requested",
        flush=True,
    )
    return {"registering_tick_s": max(registering), "quiet_tick_s": quiet, "schedule_tick_s": schedule}


def look(instance: dg.DagsterInstance, settings: Settings) -> float:
    """A tick of the sensor, with what the daemon makes of it."""
    begun = time.monotonic()
    with dg.build_sensor_context(instance) as context:
        result = build_new_shards(settings)(context, storage=build_storage(settings))
    assert isinstance(result, dg.SensorResult)
    for request in result.dynamic_partitions_requests or ():
        instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
    for event in result.asset_events:
        instance.report_runless_asset_event(event)
    return time.monotonic() - begun


def materialize(instance: dg.DagsterInstance, asset: str, numbers: range) -> None:
    """Record that an asset was made of shards."""
    for number in numbers:
        tags = {"dagster/data_version": "1"}
        instance.report_runless_asset_event(
            dg.AssetMaterialization(asset, partition=f"shard-{number:05}", tags=tags, metadata={"rows": 300})
        )


if __name__ == "__main__":
    main()
