"""Tests of the caption assets in Dagster runs, with real engines."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest
from dagster._core.asset_graph_view.asset_graph_view import AssetGraphView
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus

from caption_assets.automation.reconcile import compare, correct
from caption_assets.automation.shard_states import read_states
from caption_assets.captioning.recipe_file import built_in
from caption_assets.checks.asset_checks import checks_of
from caption_assets.dagster_lib.project import Project
from caption_assets.definitions import build_definitions
from caption_assets.settings import Settings
from caption_assets.store.lease import Leases
from caption_assets.store.previews import StoredPreviews
from caption_assets.store.root import Root
from caption_assets.store.tables import Status, read_captions, table_path
from tests.assets.conftest import ProjectHarness
from tests.conftest import Truth
from tests.models.adapters import adapter_files, write_adapter
from tests.processes import engine_processes
from tests.recipes import FOUR_STAGES, write_recipe
from tests.stages import STAGE1, STAGE2

GENERAL = built_in("general")
STAGES = [STAGE1.name, STAGE2.name]
SAMPLE_FOLDER = Path(str(files("caption_assets.sample") / "model"))


@pytest.mark.fast
def test_captions_without_weights_fail_with_the_remedy(project: ProjectHarness) -> None:
    project.run("shard_index")
    project.run("clip_manifest", partition="sample-tar")
    message = project.failure(*STAGES, partition="sample-tar")
    assert "materialize model_weights before the captions" in message


@pytest.mark.fast
def test_captions_of_a_model_by_folder_need_its_weights(project: ProjectHarness, tmp_path: Path) -> None:
    project.run("shard_index")
    project.run("clip_manifest", partition="sample-tar")
    message = project.failure(*STAGES, partition="sample-tar", model=str(tmp_path / "mine"), model_revision="1")
    assert "materialize model_weights before the captions" in message


@pytest.mark.fast
def test_captions_without_their_adapter_fail_with_the_remedy(project: ProjectHarness, tmp_path: Path) -> None:
    project.run("shard_index")
    project.run("model_weights", "clip_manifest", partition="sample-tar")
    folder = write_adapter(tmp_path / "mine", adapter_files())
    message = project.failure(*STAGES, partition="sample-tar", lora=str(folder), lora_revision="v1")
    assert re.search(
        r"lora--local--mine-\w+/v1/weights-manifest.json does not exist: materialize model_weights", message
    )


@pytest.mark.fast
def test_model_in_another_folder_of_the_same_name_needs_its_own_mirror(project: ProjectHarness, tmp_path: Path) -> None:
    project.run("shard_index")
    project.run("clip_manifest", partition="sample-folder")
    for place in ("one", "other"):
        shutil.copytree(SAMPLE_FOLDER, tmp_path / place / "mine")
    options: dict[str, Any] = {"model_revision": "1", "model_like": "sample"}
    assert project.run("model_weights", model=str(tmp_path / "one" / "mine"), **options).success
    message = project.failure(*STAGES, partition="sample-folder", model=str(tmp_path / "other" / "mine"), **options)
    assert "weights-manifest.json does not exist: materialize model_weights" in message


@pytest.mark.engine
@pytest.mark.nightly
def test_folders_of_the_same_name_and_revision_are_different_models(project: ProjectHarness, tmp_path: Path) -> None:
    project.run("shard_index")
    project.run("clip_manifest", partition="sample-folder")
    fingerprints = []
    for place, template in (("one", ""), ("other", "{# another model #}")):
        folder = tmp_path / place / "mine"
        shutil.copytree(SAMPLE_FOLDER, folder)
        with (folder / "chat_template.jinja").open("a") as file:
            file.write(template)
        for assets, shard in ((["model_weights"], None), (STAGES, "sample-folder")):
            result = project.run(*assets, partition=shard, model=str(folder), model_revision="1", model_like="sample")
            assert result.success
        rows = read_captions(Root.open(str(project.root)), STAGE2.name, "sample-folder")
        fingerprints.append({row.fingerprint for row in rows if row.status is Status.OK})
        assert fingerprints[-1]
    assert fingerprints[0].isdisjoint(fingerprints[1])


@pytest.mark.fast
def test_shard_that_another_run_captions_is_skipped(project: ProjectHarness) -> None:
    project.run("shard_index")
    with Leases(Root.open(str(project.root)), "run 7") as leases:
        leases.acquire("sample-tar")
        message = project.failure(*STAGES, partition="sample-tar")
    assert message.startswith("sample-tar: shard 'sample-tar' is being captioned by run 7")


def stale(project: ProjectHarness, **settings: object) -> set[str]:
    """The caption assets that the UI shows as stale for the folder shard."""
    definitions = build_definitions(Settings(root=str(project.root), recipe="general", **settings))  # type: ignore[arg-type]
    view = AssetGraphView.for_test(definitions, project.instance)
    resolver = CachingStaleStatusResolver(project.instance, view.asset_graph, view)
    fresh = StaleStatus.FRESH
    return {stage for stage in STAGES if resolver.get_status(dg.AssetKey(stage), "sample-folder") is not fresh}


@pytest.mark.engine
def test_failed_shard_does_not_affect_others_and_is_captioned_alone_by_a_retry(project: ProjectHarness) -> None:
    lines = ['{"uri": "sample-folder/clip-00.webm", "camera": 7}', '{"uri": "../x.mp4"}']
    (project.root / "shards" / "sample-a-list.jsonl").write_text("\n".join(lines))
    corrupt = project.root / "shards" / "sample-b-corrupt" / "clip.webm"
    corrupt.parent.mkdir()
    corrupt.write_bytes(b"no video")
    project.run("shard_index", "model_weights")
    complete = {"sample-a-list", "sample-folder", "sample-tar"}
    all_shards = {"partitions": ("sample-a-list", "sample-tar"), "max_unreadable_fraction": 0.5}
    assert project.failure("clip_manifest", **all_shards).startswith("sample-b-corrupt: 1 of 1 clips")
    engines_before = engine_processes(os.getpid())

    (project.root / "clip_manifest" / "shard=sample-b-corrupt" / "manifest.parquet").unlink()
    message = project.failure(*STAGES, previews=True, **all_shards)

    assert "materialize clip_manifest for shard 'sample-b-corrupt' first" in message
    assert engine_processes(os.getpid()) == engines_before
    for stage in STAGES:
        made = materializations(project, stage)
        assert made.keys() == complete
        root = Root.open(str(project.root))
        rows = read_captions(root, stage, "sample-folder")
        first, refused = read_captions(root, stage, "sample-a-list")
        assert first.caption in {row.caption for row in rows if row.clip_key == "clip-00.webm"}
        assert (refused.clip_key, refused.status) == ("__/x.mp4", Status.FAILED)
        previews = StoredPreviews(root, "sample-folder")
        assert all(row.window_id in previews for row in rows if row.caption)
        metadata = made["sample-folder"]
        assert metadata["rows_ok"].value == sum(row.status is Status.OK for row in rows) == 12
        assert metadata["rows_failed"].value == 1
        assert rows[0].caption is not None
        assert rows[0].caption in str(metadata["captions"].value)
        assert float(str(metadata["engine_seconds"].value)) > 0
        assert metadata["dagster/row_count"].value == len(rows)
        assert float(str(metadata["mean_words"].value)) > 3
        kind = {"stage1_captions": "damaged", "stage2_captions": "upstream_failed"}[stage]
        assert f"| {kind} | 1 |" in str(metadata["errors_by_kind"].value)
        for check in checks_of(GENERAL, GENERAL.stage(stage)):
            key = dg.AssetCheckKey(dg.AssetKey(stage), check.name)
            history = project.instance.event_log_storage.get_asset_check_execution_history(key, limit=9)
            found = {evaluation.partition: evaluation.status.value for evaluation in history}
            assert found == {**dict.fromkeys(complete, "SUCCEEDED"), "sample-b-corrupt": "PLANNED"}
        page = (project.root / "gallery" / "sample-folder" / "index.html").read_text()
        assert rows[0].window_id in page
        assert "previews" in page
        assert '<img src="data:image/png;base64,' in page

    shutil.copy(project.root / "shards" / "sample-folder" / "clip-01.webm", corrupt)
    assert project.run("clip_manifest", partition="sample-b-corrupt").success
    assert project.run(*STAGES, **all_shards).success  # type: ignore[arg-type]
    for stage in STAGES:
        made = materializations(project, stage)
        assert {shard: metadata["rows_new"].value for shard, metadata in made.items()} == {
            **dict.fromkeys(complete, 0),
            "sample-b-corrupt": 1,
        }

    assert project.run(*STAGES, partition="sample-tar", engine_args={"max_model_len": -9}).success  # no engine starts

    assert stale(project) == set()
    assert stale(project, temperature=0.5) == {"stage1_captions", "stage2_captions"}
    project.run("model_weights")  # the same bytes
    assert stale(project) == set()
    check_that_the_event_log_matches_the_tables(project)


@pytest.mark.engine
def test_captions_record_their_adapter_and_are_replaced_for_another_of_the_same_name(
    project: ProjectHarness, tmp_path: Path, truth: Truth
) -> None:
    def with_adapter(seed: int) -> dict[str, object]:
        folder = write_adapter(tmp_path / "mine", adapter_files(scale=0.13, seed=seed))  # more: endless answers
        return {"partition": "sample-folder", "lora": str(folder), "lora_revision": "v1"}

    no_engine = {"engine_args": {"max_model_len": -9}}
    mine = with_adapter(1)
    project.run("shard_index")
    assert project.run("model_weights", "clip_manifest", *STAGES, **mine).success  # type: ignore[arg-type]
    for stage in STAGES:
        rows = read_captions(Root.open(str(project.root)), stage, "sample-folder")
        captioned = [row for row in rows if row.caption and row.window_index is not None]
        assert captioned
        assert {(row.lora, row.lora_revision) for row in rows} == {("local/mine", "v1")}
        expected = {truth["sample-folder"][row.clip_key][row.window_index or 0][stage] for row in captioned}
        assert {row.caption for row in captioned} - expected, "the adapter changes no caption"
    assert project.run(*STAGES, **mine, **no_engine).success  # type: ignore[arg-type]
    other = with_adapter(2)
    assert project.run("model_weights", **other).success  # type: ignore[arg-type]
    for changed in (other, {"partition": "sample-folder"}):
        assert "did not start" in project.failure(*STAGES, **changed, **no_engine)


@pytest.mark.engine
def test_stages_of_a_recipe_file_are_captioned_together_and_one_alone(
    project: ProjectHarness, tmp_path: Path, truth: Truth
) -> None:
    sample = built_in("sample")
    prompts = {name.removesuffix("_captions"): sample.stage(name).prompt for name in FOUR_STAGES}
    recipe = str(write_recipe(tmp_path / "recipes", **prompts))
    root = Root.open(str(project.root))
    project.run("shard_index")
    assert project.run("model_weights", "clip_manifest", *FOUR_STAGES, partition="sample-folder", recipe=recipe).success
    made = {stage: materializations(project, stage)["sample-folder"] for stage in FOUR_STAGES}
    assert {stage: metadata["rows_ok"].value for stage, metadata in made.items()} == dict.fromkeys(FOUR_STAGES, 12)
    assert {metadata["recipe"].value for metadata in made.values()} == {"four"}
    for stage in ("stage1_captions", "stage2_captions", "alignment"):
        rows = [row for row in read_captions(root, stage, "sample-folder") if row.caption]
        answers = [truth["sample-folder"][row.clip_key][row.window_index or 0] for row in rows]
        right = [row.caption == answer.get(stage, "yes") for row, answer in zip(rows, answers, strict=True)]
        assert sum(right) >= 11, stage
    alignment = pq.read_table(root.full(table_path("alignment", "sample-folder")))
    assert set(alignment["score"].drop_null().to_pylist()) <= set(
        alignment["probabilities"].combine_chunks().field("yes").to_pylist()
    )
    fields = pq.read_table(root.full(table_path("attributes", "sample-folder")))["fields"].drop_null().to_pylist()
    assert [set(row) for row in fields] == [{"shape", "colour", "size", "motion", "background"}] * 12
    assert {"green", "blue", "white"} <= {row["colour"] for row in fields}
    for stage in FOUR_STAGES[1:]:
        cached = int(str(made[stage]["cached_tokens"].value))
        assert cached > 0.3 * int(str(made[stage]["prompt_tokens"].value)), stage

    before = {stage: root.read(table_path(stage, "sample-folder")) for stage in FOUR_STAGES}
    changed = str(write_recipe(tmp_path / "changed", **{**prompts, "alignment": "Yes or no? {stage2_captions}"}))
    assert project.run("alignment", partition="sample-folder", recipe=changed).success
    metadata = materializations(project, "alignment")["sample-folder"]
    assert metadata["rows_new"].value == 12
    assert "| Yes or no? {stage2_captions} |" in str(metadata["changes"].value)
    after = {stage: root.read(table_path(stage, "sample-folder")) for stage in FOUR_STAGES}
    assert [stage for stage in FOUR_STAGES if after[stage] != before[stage]] == ["alignment"]


def check_that_the_event_log_matches_the_tables(project: ProjectHarness) -> None:
    """Check the event log after runs, and after it was wiped and reconciled."""
    settings = Settings(root=str(project.root), recipe="general", max_unreadable_fraction=0.5)
    root, default = Root.open(str(project.root)), Project.of(settings)
    shards = frozenset({"sample-a-list", "sample-b-corrupt", "sample-folder", "sample-tar"})
    assert compare(project.instance, settings, root) == []
    assert read_states(project.instance, default, root).captioned == shards
    project.instance.wipe_assets([default.manifest, *default.stages])
    assert len(compare(project.instance, settings, root)) == 3 * len(shards)
    correct(project.instance, settings, root, compare(project.instance, settings, root), None)
    assert compare(project.instance, settings, root) == []
    assert read_states(project.instance, default, root).captioned == shards
    assert stale(project) == set()


def materializations(project: ProjectHarness, asset: str) -> dict[str, Mapping[str, dg.MetadataValue]]:
    """Metadata of each shard's latest materialization."""
    records = project.instance.fetch_materializations(dg.AssetKey(asset), limit=99, ascending=True).records
    return {
        str(record.partition_key): record.asset_materialization.metadata
        for record in records
        if record.asset_materialization
    }
