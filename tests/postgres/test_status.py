"""Tests of the shards' status on the cluster's instance with PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from caption_assets.automation.shard_status import read_statuses
from tests.automation.conftest import AutomationHarness
from tests.automation.test_shard_status import fail
from tests.automation.test_status_report import Sensor
from tests.stages import TABLE_NAMES

pytestmark = pytest.mark.postgres


def test_status_and_totals_are_read_on_postgresql(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    harness = AutomationHarness(tmp_path, instance)
    harness.add("a", "b", "c")
    harness.run_sensor()
    harness.store_weights()
    for table in TABLE_NAMES:
        harness.materialize(table, "a", "b", metadata={"rows_ok": 5, "rows_failed": 1})
    harness.use_recipe("driving")
    harness.materialize("stage1_captions", "b")
    harness.materialize("stage2_captions", "b")
    fail(harness, "c", "clip_manifest")
    event = dg.AssetObservation(harness.project.manifest, partition="c", metadata={"error": "no videos"})
    instance.report_runless_asset_event(event)

    statuses = read_statuses(instance, harness.settings, harness.root)
    assert {shard: str(status.state) for shard, status in statuses.items()} == {
        "a": "stale",
        "b": "complete",
        "c": "failed",
    }
    assert statuses["c"].tables["clip_manifest"].reason == "no videos"
    sensor = Sensor(harness)
    assert len(sensor.tick()) == 3  # both stages of a, and the totals
    assert sensor.tick() == []
