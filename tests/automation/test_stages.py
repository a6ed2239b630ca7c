"""Tests of the automation with a recipe of four stages."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caption_assets.automation.reconcile import compare
from caption_assets.automation.records import is_recorded
from caption_assets.automation.retire import retire
from caption_assets.automation.trash import restore
from caption_assets.captioning.open_shard import RECIPE_VERSION
from caption_assets.store.tables import table_path
from tests.automation.conftest import AutomationHarness
from tests.recipes import FOUR_STAGES, write_recipe

pytestmark = pytest.mark.fast

SHARDS = ("a", "b", "c")


@pytest.fixture
def harness(tmp_path: Path, instance: dg.DagsterInstance) -> AutomationHarness:
    """Three shards with manifests, and weights."""
    harness = AutomationHarness(tmp_path, instance, recipe=str(write_recipe(tmp_path / "recipes")))
    harness.add(*SHARDS)
    harness.run_sensor()
    harness.store_weights()
    harness.materialize("clip_manifest", *SHARDS)
    return harness


@pytest.fixture
def captioned(harness: AutomationHarness) -> AutomationHarness:
    """The same shards with captions of all stages."""
    for stage in FOUR_STAGES:
        harness.materialize(stage, *SHARDS)
    return harness


def selection(request: dg.RunRequest) -> list[str]:
    return [asset.to_user_string() for asset in request.asset_selection or ()]


def test_all_stages_of_new_shards_are_requested(harness: AutomationHarness) -> None:
    [request] = harness.run_requests()
    assert selection(request) == list(FOUR_STAGES)


def test_shards_with_all_stages_are_captioned(captioned: AutomationHarness) -> None:
    assert captioned.run_schedule() == "3 of 3 shards are captioned"
    assert compare(captioned.instance, captioned.settings, captioned.root) == []


@pytest.mark.parametrize(
    ("deleted", "requested"),
    [
        ("stage1_captions", ["stage1_captions", "stage2_captions", "alignment"]),
        ("stage2_captions", ["stage1_captions", "stage2_captions", "alignment"]),
        ("attributes", ["attributes"]),
        ("alignment", ["stage1_captions", "stage2_captions", "alignment"]),
    ],
)
def test_missing_stage_is_requested_with_its_upstream_and_downstream_stages(
    captioned: AutomationHarness, deleted: str, requested: list[str]
) -> None:
    captioned.delete_tables(deleted, "b")
    [request] = captioned.run_requests()
    assert selection(request) == requested
    assert request.tags["dagster/asset_partition_range_start"] == "b"
    assert request.tags["dagster/asset_partition_range_end"] == "b"


def test_one_run_makes_all_tables_that_its_shards_lack(captioned: AutomationHarness) -> None:
    captioned.delete_tables("attributes", "a")
    captioned.delete_tables("alignment", "c")
    [request] = captioned.run_requests()
    assert selection(request) == ["stage1_captions", "stage2_captions", "attributes", "alignment"]
    for _ in range(captioned.settings.shard_attempts):
        [request] = captioned.run_requests()
        captioned.launch(request, dg.DagsterRunStatus.FAILURE)
    message = str(captioned.run_schedule())
    assert "2 are not retried after 3 runs (CAPTION_SHARD_ATTEMPTS)" in message
    assert message.endswith(": a (attributes), c (alignment)")


def test_captions_of_another_input_version_are_requested(captioned: AutomationHarness) -> None:
    captioned.materialize("attributes", "b", clip_manifest="other")
    [request] = captioned.run_requests()
    assert selection(request) == ["attributes"]


def test_stage_added_to_the_recipe_is_requested_with_its_upstream_stages(harness: AutomationHarness) -> None:
    everything = harness.settings.recipe
    harness.use_recipe("general")
    [request] = harness.run_requests()
    harness.launch(request, dg.DagsterRunStatus.SUCCESS)
    for stage in ("stage1_captions", "stage2_captions"):
        harness.materialize(stage, *SHARDS)
    assert harness.run_schedule() == "3 of 3 shards are captioned"
    harness.use_recipe(str(everything))
    for _ in range(harness.settings.shard_attempts):
        [request] = harness.run_requests()
        assert selection(request) == ["stage1_captions", "stage2_captions", "attributes", "alignment"]
        harness.launch(request, dg.DagsterRunStatus.FAILURE)
    assert "3 are not retried" in str(harness.run_schedule())


def write_former_table(harness: AutomationHarness, shard: str) -> str:
    """Store the captions of a stage as a run does, and drop the stage from the recipe. Returns the path."""
    recipe = harness.settings.caption_recipe
    metadata = {RECIPE_VERSION: recipe.version(recipe.graph.stage("attributes"))}
    harness.publish("attributes", shard, None, metadata)
    harness.use_recipe("general")
    return table_path("attributes", shard)


def test_dropped_stage_leaves_its_tables_until_the_shard_is_retired(captioned: AutomationHarness) -> None:
    path = write_former_table(captioned, "a")
    assert captioned.run_schedule() == "3 of 3 shards are captioned"
    content = captioned.root.read(path)
    retire(captioned.instance, captioned.project, captioned.root, "a")
    assert not captioned.root.exists(path)
    assert not captioned.root.exists("attributes/shard=a")
    attributes = captioned.project.key("attributes")
    assert not is_recorded(captioned.instance, attributes, "a")
    assert is_recorded(captioned.instance, attributes, "b")
    restore(captioned.instance, captioned.settings, captioned.root, "a")
    assert captioned.root.read(path) == content
    assert captioned.run_schedule() == "3 of 3 shards are captioned"


def test_retiring_leaves_files_of_others(captioned: AutomationHarness) -> None:
    path = write_former_table(captioned, "b")
    ours = captioned.root.read(path)
    files = {
        "mine/shard=a/captions.parquet": foreign_table(),
        "notes/shard=a/captions.parquet": b"no table",
        "attributes/shard=ab/captions.parquet": ours,
        "attributes/shard=a/other.parquet": ours,
        "Attributes/shard=a/captions.parquet": ours,
        "backup/attributes/shard=a/captions.parquet": ours,
        "weights/shard=a/captions.parquet": ours,
    }
    captioned.root.remove("attributes/shard=a/captions.parquet")
    for file, content in files.items():
        captioned.root.write(file, content)
    retire(captioned.instance, captioned.project, captioned.root, "a")
    assert {file: captioned.root.read(file) for file in files} == files
    assert captioned.root.read(path) == ours


def foreign_table() -> bytes:
    """A Parquet file that another program wrote."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"clip_key": ["a.mp4"], "caption": ["A car."]}), sink)
    return bytes(sink.getvalue())
