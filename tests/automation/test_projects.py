"""Tests of several projects on one Dagster instance, each with its own root and source."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from caption_assets.automation.reconcile import compare
from caption_assets.automation.removals import confirm_removals
from caption_assets.dagster_lib.project_claim import ProjectClash
from caption_assets.dagster_lib.shard_events import REMOVED, observed_versions
from tests.automation.conftest import AutomationHarness

pytestmark = pytest.mark.fast

Harnesses = tuple[AutomationHarness, AutomationHarness]

STAGES = ("clip_manifest", "stage1_captions", "stage2_captions")


@pytest.fixture
def harnesses(tmp_path: Path, instance: dg.DagsterInstance) -> Harnesses:
    """The default project and a named one, with a shard name in common."""
    plain = AutomationHarness(tmp_path / "plain", instance)
    plain.add("a", "b")
    north = AutomationHarness(tmp_path / "north", instance, project="north")
    north.add("b", "c")
    return plain, north


def test_project_does_not_report_shards_of_another_as_removed(harnesses: Harnesses) -> None:
    for _ in range(3):
        for harness in harnesses:
            harness.run_sensor()
    assert [harness.registered for harness in harnesses] == [["a", "b"], ["b", "c"]]
    for harness in harnesses:
        assert REMOVED not in observed_versions(harness.instance, harness.project).values()


def test_project_requests_only_its_own_shards(harnesses: Harnesses) -> None:
    for harness in harnesses:
        harness.run_sensor()
        harness.store_weights()
    plain, north = harnesses
    for asset in STAGES:
        plain.materialize(asset, "a", "b")
    assert plain.run_schedule() == "2 of 2 shards are captioned"
    [request] = north.run_requests()
    assert request.asset_selection == [dg.AssetKey(["north", "clip_manifest"])]


def test_run_of_one_project_is_not_active_in_another(harnesses: Harnesses) -> None:
    for harness in harnesses:
        harness.run_sensor()
        harness.store_weights()
    plain, north = harnesses
    [request] = north.run_requests()
    north.launch(request, dg.DagsterRunStatus.STARTED)
    [request] = plain.run_requests()
    assert request.tags["dagster/asset_partition_range_start"] == "a"
    assert request.tags["dagster/asset_partition_range_end"] == "b"
    assert "2 have active runs" in str(north.run_schedule())


def test_project_name_of_another_root_is_rejected_before_registration(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    first, second = AutomationHarness(tmp_path / "first", instance), AutomationHarness(tmp_path / "second", instance)
    first.add("a")
    second.add("b")
    first.run_sensor()
    with pytest.raises(dg.Failure, match="CAPTION_PROJECT to a name that no other project of this instance has"):
        second.run_sensor()
    first.run_sensor()
    assert first.registered == ["a"]
    assert REMOVED not in observed_versions(instance, first.project).values()


def test_commands_reject_the_root_of_another_project(harnesses: Harnesses) -> None:
    plain, north = harnesses
    for harness in harnesses:
        harness.run_sensor()
    elsewhere = north.settings.model_copy(update={"project": None})
    with pytest.raises(ProjectClash):
        compare(plain.instance, elsewhere, north.root)
    with pytest.raises(ProjectClash):
        confirm_removals(plain.instance, elsewhere, 1)
    assert REMOVED not in observed_versions(plain.instance, plain.project).values()


def test_project_with_a_new_name_requests_no_captions_again(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    before = AutomationHarness(tmp_path, instance)
    before.add("a", "b")
    before.run_sensor()
    before.store_weights()
    for asset in STAGES:
        before.materialize(asset, "a", "b")
    after = AutomationHarness(tmp_path, instance, project="north")
    after.run_sensor()
    after.store_weights()
    assert after.run_schedule() == "2 of 2 shards are captioned"
