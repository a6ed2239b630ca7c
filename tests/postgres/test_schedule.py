"""Tests of the schedule on PostgreSQL, evaluated in this process; runs are created but not executed."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import dagster as dg
import pytest

from tests.automation.conftest import AutomationHarness

pytestmark = [pytest.mark.postgres]

STARTED = dg.DagsterRunStatus.STARTED


@pytest.mark.representative
def test_tick_requests_a_run_while_128_shards_have_active_runs(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    harness = AutomationHarness(tmp_path, instance, shards_per_run=128, backfill_concurrency=136)
    harness.add(*(sha256(bytes([number])).hexdigest()[:24] for number in range(136)))
    harness.run_sensor()
    harness.store_weights()
    first, _ = harness.run_requests()
    harness.launch(first, STARTED)  # with one tag for all shards, PostgreSQL rejected this run
    [last] = harness.run_requests()
    harness.launch(last, STARTED)
    assert harness.run_schedule() == "0 of 136 shards are captioned; 136 have active runs"


def test_long_shard_names_fit_the_indexes(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    harness = AutomationHarness(tmp_path, instance)
    harness.add("a" * 240, "b" * 240)
    harness.run_sensor()
    harness.store_weights()
    [manifests] = harness.run_requests()
    harness.launch(manifests, dg.DagsterRunStatus.FAILURE)
    harness.materialize("clip_manifest", *harness.registered)
    [captions] = harness.run_requests()
    harness.launch(captions, STARTED)
    assert "2 have active runs" in str(harness.run_schedule())
