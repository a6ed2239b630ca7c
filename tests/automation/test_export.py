from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from caption_assets.automation.export import QUIET, build_correction_sensor
from caption_assets.resources import build_storage
from caption_assets.store.corrections import (
    Correction,
    Decision,
    compact_corrections,
    read_correction_files,
    save_correction,
    save_corrections,
)
from tests.automation.conftest import AutomationHarness
from tests.report.windows import captioned, window

pytestmark = pytest.mark.fast


@pytest.fixture
def project(harness: AutomationHarness) -> AutomationHarness:
    """A captioned shard ``a`` and a shard ``b`` without captions."""
    harness.add("a", "b")
    harness.run_sensor()
    harness.store_weights()
    for table in ("clip_manifest", "stage1_captions", "stage2_captions"):
        harness.materialize(table, "a")
    return harness


def decide(ago: timedelta) -> Correction:
    made = Correction.of(captioned(window("a.mp4"), "A car."), "stage2_captions", Decision.ACCEPT, "ann")
    return replace(made, decided_at=datetime.now(UTC) - ago)


def tick(harness: AutomationHarness) -> list[dg.RunRequest]:
    """The runs that one tick of the sensor requests."""
    with dg.build_sensor_context(harness.instance) as context:
        result = build_correction_sensor(harness.settings)(context, storage=build_storage(harness.settings))
    return list(result.run_requests or ()) if isinstance(result, dg.SensorResult) else []


def test_corrected_shard_is_exported_once_its_reviewers_are_done(project: AutomationHarness) -> None:
    assert tick(project) == []
    save_correction(project.root, "a", decide(QUIET))
    save_correction(project.root, "a", decide(timedelta(0)))
    assert tick(project) == []
    compact_corrections(project.root, read_correction_files(project.root, "a"))
    save_correction(project.root, "a", decide(QUIET))
    [request] = tick(project)
    assert (request.tags["dagster/partition"], request.asset_selection) == ("a", [project.project.dataset])
    assert [again.run_key for again in tick(project)] == [request.run_key]
    save_correction(project.root, "a", decide(QUIET))
    assert tick(project)[0].run_key != request.run_key
    compact_corrections(project.root, read_correction_files(project.root, "a"))
    assert tick(project) == []


def test_imported_decisions_are_exported_at_once(project: AutomationHarness) -> None:
    save_corrections(project.root, "a", [decide(timedelta(0))])
    assert len(tick(project)) == 1


def test_shard_without_captions_or_with_an_active_run_is_not_exported(project: AutomationHarness) -> None:
    save_correction(project.root, "b", decide(QUIET))
    assert tick(project) == []
    save_correction(project.root, "a", decide(QUIET))
    [request] = tick(project)
    project.launch(request, dg.DagsterRunStatus.STARTED)
    assert tick(project) == []
