from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from caption_assets.assets.clip_manifest import manifest_code_version
from caption_assets.automation.new_shards import build_new_shards
from caption_assets.automation.schedule import build_backfill
from caption_assets.captioning.open_shard import file_metadata
from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.shard_events import observed_versions
from caption_assets.models.weights import WeightsManifest
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
from caption_assets.store.versions import TableVersions, read_versions


class AutomationHarness:
    """A project with a source, a root and a Dagster instance, and ticks of its sensor and schedule."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance, **settings: object) -> None:
        self.source = folder / "shards"
        self.source.mkdir(parents=True, exist_ok=True)
        self.settings = Settings(**{"root": str(folder), "recipe": "general", **settings})  # type: ignore[arg-type]
        self.root = Root.open(str(folder))
        self.instance = instance
        self.cursor: str | None = None
        self.ticks = 0

    @property
    def project(self) -> Project:
        return Project.of(self.settings)

    def use_recipe(self, recipe: str) -> None:
        """Change the recipe."""
        self.settings = Settings(**{**self.settings.model_dump(exclude_unset=True), "recipe": recipe})

    def add(self, *shards: str, content: bytes = b"{}", minutes_ago: float = 5) -> None:
        """Add URI lists to the source."""
        for shard in shards:
            self.write_file(f"{shard}.jsonl", content, minutes_ago=minutes_ago)

    def write_file(self, path: str, content: bytes = b"", *, minutes_ago: float = 5) -> None:
        """Write a file in the source."""
        file = self.source / path
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
        then = time.time() - 60 * minutes_ago
        os.utime(file, (then, then))

    def run_sensor(self) -> dg.SensorResult:
        """Run one tick of the sensor ``new_shards``; applies its requests and events as the daemon does."""
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

    def run_schedule(self) -> list[dg.RunRequest] | str:
        """Run one tick of the schedule ``backfill``; returns the run requests, or the reason for none."""
        self.ticks += 1
        now = datetime(2031, 1, 1, tzinfo=UTC) + timedelta(hours=self.ticks)
        with dg.build_schedule_context(self.instance, scheduled_execution_time=now) as context:
            result = build_backfill(self.settings).evaluate_tick(context)
        return list(result.run_requests or ()) or str(result.skip_message)

    def run_requests(self) -> list[dg.RunRequest]:
        """Run one tick of the schedule, which must request runs."""
        requests = self.run_schedule()
        assert isinstance(requests, list), requests
        return requests

    def launch(self, request: dg.RunRequest, status: dg.DagsterRunStatus) -> dg.DagsterRun:
        """Add the run of a request, as the daemon does, with a status."""
        selection = frozenset(request.asset_selection) if request.asset_selection else None
        run = dg.DagsterRun(job_name="j", tags=dict(request.tags), status=status, asset_selection=selection)
        return self.instance.add_run(run)

    def materialize(
        self,
        asset: str,
        *shards: str,
        version: str = "1",
        metadata: Mapping[str, object] | None = None,
        code: str | None = None,
        recorded: bool = True,
        **inputs: str,
    ) -> None:
        """Publish a table of shards and record it, as a run does.

        Args:
            asset: name of the table.
            shards: their keys.
            version: data version of the table.
            metadata: metadata of the record.
            code: code version; None for the current one.
            recorded: false for a run that is killed before it records the table.
            inputs: data versions of inputs, where they differ from the current ones.
        """
        for shard in shards:
            versions = TableVersions(version, code or self.code(asset), {**self.inputs(asset, shard), **inputs})
            self.publish(asset, shard, versions, self.file_metadata(asset))
            if recorded:
                self.record(asset, shard, metadata=metadata, tags=tags_of(versions))

    def publish(
        self, table: str, shard: str, versions: TableVersions | None, metadata: Mapping[str, str] | None = None
    ) -> None:
        """Publish a table of one window."""
        metadata = {**(versions.file_metadata if versions else {}), **(metadata or {})}
        window = ManifestRow("a.mp4", 0, "id", "t", 1, Status.OK, width=64, height=64)
        window = replace(window, start_frame=0, end_frame=8, start_seconds=0.0, end_seconds=1.0)
        if table == CLIP_MANIFEST:
            publish_manifest(self.root, shard, [window], metadata)
        else:
            columns = self.settings.caption_recipe.graph.stage(table).columns
            caption = columns.choices[0] if columns.choices else '"A red square."'
            row = CaptionRow(*window.key, window.window_id, 0.0, 1.0, Status.OK, caption=caption, attempts=1)
            publish_captions(self.root, table, shard, [row], [row.key], metadata, columns)

    def record(
        self,
        asset: str,
        shard: str,
        *,
        metadata: Mapping[str, object] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Record a materialization; without tags, as "Report materialization" in the UI does."""
        key = self.project.key(asset)
        event = dg.AssetMaterialization(key, partition=shard, metadata=metadata, tags=tags)  # type: ignore[arg-type]
        self.instance.report_runless_asset_event(event)

    def delete_tables(self, asset: str, *shards: str) -> None:
        """Delete tables without recording it."""
        for shard in shards:
            self.root.remove(table_path(asset, shard))

    def file_metadata(self, table: str) -> dict[str, str]:
        """The recipe in a table's file metadata."""
        recipe = self.settings.caption_recipe
        return {} if table == CLIP_MANIFEST else file_metadata(recipe, recipe.graph.stage(table))

    def code(self, table: str) -> str:
        """The current code version of a table."""
        if table == CLIP_MANIFEST:
            return manifest_code_version(self.settings.windowing)
        recipe = self.settings.caption_recipe
        return recipe.version(recipe.graph.stage(table))

    def inputs(self, table: str, shard: str) -> dict[str, str]:
        """The current data versions of a table's inputs."""
        if table == CLIP_MANIFEST:
            return {"shards": observed_versions(self.instance, self.project, [shard])[shard]}
        found = {upstream: read_versions(self.root, upstream, shard) for upstream in self.project.inputs[table]}
        return {upstream: versions.data for upstream, versions in found.items() if versions}

    def store_weights(self) -> None:
        """Store a weights manifest and record it."""
        variant = self.settings.variant
        manifest = WeightsManifest(variant.hub_id, variant.revision, ())
        self.root.write(f"weights/{variant.folder}/weights-manifest.json", manifest.to_json().encode())
        tags = {"dagster/code_version": variant.folder, "dagster/data_version": manifest.digest[:16]}
        self.instance.report_runless_asset_event(dg.AssetMaterialization(self.project.weights, tags=tags))


def tags_of(versions: TableVersions) -> dict[str, str]:
    """The tags of a table's record in the default project."""
    inputs = {f"dagster/input_data_version/{name}": version for name, version in versions.inputs.items()}
    return {"dagster/data_version": versions.data, "dagster/code_version": versions.code, **inputs}


@pytest.fixture
def harness(tmp_path: Path, instance: dg.DagsterInstance) -> AutomationHarness:
    return AutomationHarness(tmp_path, instance)
