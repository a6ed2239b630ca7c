from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from caption_assets.assets.project import Project
from caption_assets.automation.backfill import build_backfill
from caption_assets.automation.new_shards import build_new_shards
from caption_assets.resources import build_storage
from caption_assets.settings import Settings


class Site:
    """A source, an instance, and ticks of the automation over them."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance, **settings: object) -> None:
        self.source = folder / "shards"
        self.source.mkdir()
        self.settings = Settings(root=str(folder), **settings)  # type: ignore[arg-type]
        self.project = Project(self.settings.project)
        self.instance = instance
        self.cursor: str | None = None
        self.ticks = 0

    def add(self, *shards: str, content: bytes = b"{}", minutes_ago: float = 5) -> None:
        """Put lists into the source."""
        for shard in shards:
            self.touch(f"{shard}.jsonl", content, minutes_ago=minutes_ago)

    def touch(self, path: str, content: bytes = b"", *, minutes_ago: float = 5) -> None:
        """Write a file of the source."""
        file = self.source / path
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
        then = time.time() - 60 * minutes_ago
        os.utime(file, (then, then))

    def look(self) -> dg.SensorResult:
        """One tick of the sensor, and what the daemon makes of it."""
        with dg.build_sensor_context(self.instance, cursor=self.cursor) as context:
            result = build_new_shards(self.settings)(context, storage=build_storage(self.settings))
        assert isinstance(result, dg.SensorResult)
        for request in result.dynamic_partitions_requests or ():
            self.instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
        for event in result.asset_events:
            self.instance.report_runless_asset_event(event)
        self.cursor = result.cursor
        return result

    @property
    def registered(self) -> list[str]:
        return self.project.registered(self.instance)

    def tick(self) -> list[dg.RunRequest] | str:
        """One tick of the schedule: the runs that it requests, or why it requests none."""
        self.ticks += 1
        now = datetime(2031, 1, 1, tzinfo=UTC) + timedelta(hours=self.ticks)
        context = dg.build_schedule_context(self.instance, scheduled_execution_time=now)
        result = build_backfill(self.settings).evaluate_tick(context)
        return list(result.run_requests or ()) or str(result.skip_message)

    def requests(self) -> list[dg.RunRequest]:
        """One tick of the schedule that requests something."""
        requests = self.tick()
        assert isinstance(requests, list), requests
        return requests

    def launch(self, request: dg.RunRequest, status: dg.DagsterRunStatus) -> dg.DagsterRun:
        """A run as the daemon would make it of a request, in the state it is in by now."""
        return self.instance.add_run(dg.DagsterRun(job_name="j", tags=dict(request.tags), status=status))

    def materialize(
        self,
        asset: str,
        *shards: str,
        version: str = "1",
        metadata: Mapping[str, int] | None = None,
        **inputs: str,
    ) -> None:
        """Record that an asset was made of shards, from versions of its inputs."""
        tags = {"dagster/data_version": version}
        tags |= {f"dagster/input_data_version/{upstream}": made_from for upstream, made_from in inputs.items()}
        for shard in shards:
            event = dg.AssetMaterialization(self.project.key(asset), partition=shard, metadata=metadata, tags=tags)
            self.instance.report_runless_asset_event(event)

    def fetch_weights(self) -> None:
        """Record that the weights are there."""
        tags = {"dagster/code_version": self.settings.variant.folder}
        self.instance.report_runless_asset_event(dg.AssetMaterialization(self.project.weights, tags=tags))


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """One with a database on disk: schedules are evaluated over no other."""
    with dg.instance_for_test() as instance:
        yield instance


@pytest.fixture
def site(tmp_path: Path, instance: dg.DagsterInstance) -> Site:
    return Site(tmp_path, instance)
