"""Tests of the asset checks on a real instance. Captions are stored beforehand, so that no engine is needed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

import dagster as dg
import pytest

from caption_assets.automation.shard_status import State, read_statuses
from caption_assets.captioning.open_shard import file_metadata
from caption_assets.captioning.output import ChoiceOutput
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.recipe_file import built_in
from caption_assets.captioning.stages import Stage
from caption_assets.captioning.window_job import UPSTREAM_FAILED, blank_row
from caption_assets.checks.asset_checks import checks_of
from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.shard_events import observation
from caption_assets.definitions import build_definitions
from caption_assets.export.index import DATASET
from caption_assets.models.variants import SAMPLE
from caption_assets.settings import Settings
from caption_assets.store.root import Root
from caption_assets.store.tables import (
    CaptionRow,
    ManifestRow,
    Status,
    publish_captions,
    publish_manifest,
    read_manifest,
)
from tests.assets.conftest import ProjectHarness
from tests.report.windows import broken, window
from tests.stages import STAGE1, STAGE2

pytestmark = pytest.mark.fast

STAGES = [STAGE1.name, STAGE2.name]
GENERAL = Recipe(graph=built_in("general"))
NOT_RETRIED = 99
"""Number of attempts after which a failed row is not retried."""
CLIPS = [window(f"clip-{number:02}.mp4") for number in range(12)]

CaptionOf = Callable[[ManifestRow], str | None]


@pytest.fixture
def project(tmp_path: Path) -> ProjectHarness:
    """A project with an empty root."""
    return ProjectHarness(tmp_path)


def short(clip: ManifestRow) -> str:
    return f"The clip {clip.clip_key} shows a car."


def full(clip: ManifestRow) -> str:
    return f"{short(clip)} It moves slowly from left to right."


def store_captions(
    project: ProjectHarness,
    stage1: CaptionOf = short,
    stage2: CaptionOf = full,
    *,
    shard: str = "a",
    manifest: Sequence[ManifestRow] = CLIPS,
    reductions: Sequence[str] = (),
    recipe: Recipe = GENERAL,
    others: Mapping[str, CaptionOf] = MappingProxyType({}),
) -> None:
    """Publish a shard whose captions a run reuses. A caption of None is a failed row that is not retried.

    ``others`` has the captions of further stages of ``recipe``.
    """
    root = Root.open(str(project.root))
    project.instance.add_dynamic_partitions("shards", [shard])
    publish_manifest(root, shard, manifest, {})
    made = rows_of_stages(recipe, manifest, {STAGE1.name: stage1, STAGE2.name: stage2, **others}, reductions)
    for stage in recipe.stages:
        keys, metadata = [row.key for row in manifest], file_metadata(recipe, stage)
        publish_captions(root, stage.name, shard, made[stage.name], keys, metadata, stage.columns)


def rows_of_stages(
    recipe: Recipe, manifest: Sequence[ManifestRow], captions: Mapping[str, CaptionOf], reductions: Sequence[str] = ()
) -> dict[str, list[CaptionRow]]:
    """The rows of each stage, which a run of the recipe reuses."""
    made: dict[str, list[CaptionRow]] = {}
    for stage in recipe.stages:
        rows = [
            _row(recipe, stage, clip, captions[stage.name](clip), {name: made[name][number] for name in stage.needs})
            for number, clip in enumerate(manifest)
        ]
        made[stage.name] = [replace(row, reductions=reductions) for row in rows]
    return made


def _row(
    recipe: Recipe,
    stage: Stage,
    clip: ManifestRow,
    caption: str | None,
    needed: Mapping[str, CaptionRow],
) -> CaptionRow:
    if any(row.caption is None for row in needed.values()):
        return replace(blank_row(recipe, stage, clip), error_kind=UPSTREAM_FAILED, error="it failed")
    blank = blank_row(recipe, stage, clip, needed)
    if clip.status is Status.FAILED:
        return replace(blank, error_kind=clip.error_kind, error=clip.error)
    if caption is None:
        return replace(blank, error_kind="engine", error="no answer", attempts=NOT_RETRIED)
    probabilities = {"yes": 0.75, "no": 0.25} if isinstance(stage.output, ChoiceOutput) else None
    made = replace(blank, status=Status.OK, caption=caption, finish_reason="stop", attempts=1)
    return replace(made, probabilities=probabilities)


def evaluations(project: ProjectHarness, result: dg.ExecuteInProcessResult) -> list[dg.AssetCheckEvaluation]:
    """Evaluations of a run, from the event log: a failed step returns no events."""
    found = project.instance.all_logs(result.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    return [entry.get_dagster_event().asset_check_evaluation_data for entry in found]


def checks(
    project: ProjectHarness, result: dg.ExecuteInProcessResult, asset: str
) -> dict[str, dg.AssetCheckEvaluation]:
    """A run's evaluations of an asset's only shard, by check."""
    key = dg.AssetKey(asset)
    found = [evaluation for evaluation in evaluations(project, result) if evaluation.asset_key == key]
    assert len({evaluation.check_name for evaluation in found}) == len(found)
    return {evaluation.check_name: evaluation for evaluation in found}


def failing(project: ProjectHarness, result: dg.ExecuteInProcessResult, asset: str) -> set[str]:
    return {name for name, evaluation in checks(project, result, asset).items() if not evaluation.passed}


def materialized(project: ProjectHarness, result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetMaterialization]:
    """A run's materializations of its only shard, by asset."""
    found = project.instance.all_logs(result.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    events = [entry.asset_materialization for entry in found if entry.asset_materialization]
    return {event.asset_key.to_user_string(): event for event in events if event.partition}


def test_every_check_is_evaluated_for_the_shards_materialization(project: ProjectHarness) -> None:
    store_captions(project)
    result = project.run(*STAGES, partition="a")
    assert result.success
    for stage in GENERAL.stages:
        table = stage.name
        found = checks(project, result, table)
        assert list(found) == [check.name for check in checks_of(GENERAL.graph, stage)]
        for evaluation in found.values():
            assert evaluation.passed
            assert evaluation.partition == "a"
            assert evaluation.description
        [record] = project.instance.fetch_materializations(dg.AssetKey(table), limit=9).records
        targets = [evaluation.target_materialization_data for evaluation in found.values()]
        assert {target and target.storage_id for target in targets} == {record.storage_id}


def test_warnings_do_not_block_the_materialization(project: ProjectHarness) -> None:
    store_captions(project, lambda _: "A car drives by.", lambda _: "A car drives by.")
    result = project.run(*STAGES, partition="a")
    assert result.success
    assert list(materialized(project, result)) == STAGES
    assert failing(project, result, STAGES[0]) == {"duplicate_captions"}
    assert failing(project, result, STAGES[1]) == {"duplicate_captions", "adds_to_stage1"}
    duplicates = checks(project, result, STAGES[0])["duplicate_captions"]
    assert duplicates.severity is dg.AssetCheckSeverity.WARN
    assert duplicates.metadata["count"].value == 11
    assert duplicates.metadata["most_clips_with_one_caption"].value == 12


def test_shard_with_too_many_failures_is_not_materialized(project: ProjectHarness) -> None:
    store_captions(project, stage2=lambda clip: None if clip is CLIPS[3] else full(clip))
    result = project.run(*STAGES, partition="a", max_failed_windows=0)
    assert list(materialized(project, result)) == STAGES[:1]
    assert failing(project, result, STAGES[0]) == set()
    assert failing(project, result, STAGES[1]) == {"failed_fraction"}
    check = checks(project, result, STAGES[1])["failed_fraction"]
    assert check.severity is dg.AssetCheckSeverity.ERROR
    limits = "CAPTION_MAX_FAILED_FRACTION = 0.05 and CAPTION_MAX_FAILED_WINDOWS = 0"
    assert f"1 of 12 windows of stage2_captions failed, more than {limits}" in str(check.description)
    message = project.failure(*STAGES, partition="a", max_failed_windows=0)
    assert message == f"a: {check.description}"

    lenient = project.run(*STAGES, partition="a")
    assert list(materialized(project, lenient)) == STAGES
    assert failing(project, lenient, STAGES[1]) == set()
    assert "no answer" in str(materialized(project, lenient)[STAGES[1]].metadata["errors_by_kind"].value)


def test_reason_of_a_failure_is_observed_on_the_tables_that_were_not_made(project: ProjectHarness) -> None:
    store_captions(project)
    store_captions(project, stage2=lambda _: None, shard="b")
    for shard in "ab":
        project.instance.report_runless_asset_event(observation(Project(), shard, "1"))
    result = project.run(*STAGES, partitions=("a", "b"))
    events = project.instance.all_logs(result.run_id, of_type=dg.DagsterEventType.ASSET_OBSERVATION)
    [found] = [entry.get_dagster_event().asset_observation_data.asset_observation for entry in events]
    assert (found.asset_key, found.partition) == (dg.AssetKey(STAGES[1]), "b")
    assert "12 of 12 windows of stage2_captions failed" in str(found.metadata["error"].value)

    settings = Settings(root=str(project.root), recipe="general")
    statuses = read_statuses(project.instance, settings, Root.open(str(project.root)))
    failed = statuses["b"].tables[STAGES[1]]
    assert (failed.state, failed.reason) == (State.FAILED, found.metadata["error"].value)
    assert failed.run_id == result.run_id


def test_metadata_counts_the_captioned_shards(project: ProjectHarness) -> None:
    for shard in "abc":
        store_captions(project, shard=shard)
    counts = []
    for partitions in (("a", "b"), ("b", "c")):
        result = project.run(STAGES[0], partitions=partitions)
        found = project.instance.all_logs(result.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
        metadata = [entry.asset_materialization.metadata for entry in found if entry.asset_materialization]
        counts += [(one["shards_captioned"].value, one["shards_registered"].value) for one in metadata]
    assert counts == [(1, 3), (2, 3), (2, 3), (3, 3)]


def test_stage_and_dataset_of_captions_with_too_many_failures_are_refused(project: ProjectHarness) -> None:
    store_captions(project, stage1=lambda clip: None if clip in CLIPS[:3] else short(clip))
    strict = {"partition": "a", "export": "jsonl"}
    limits = "CAPTION_MAX_FAILED_FRACTION = 0.05 and CAPTION_MAX_FAILED_WINDOWS = 2"
    refused = project.failure(STAGES[1], **strict)
    assert f"a: 3 of 12 windows of stage1_captions failed, more than {limits}; the first: 'clip-00.mp4', " in refused
    assert refused.endswith(project.failure(DATASET, **strict))
    lenient = {**strict, "max_failed_windows": 3}
    assert project.run(STAGES[1], **lenient).success  # type: ignore[arg-type]
    assert project.run(DATASET, **lenient).success  # type: ignore[arg-type]


def test_each_shard_of_a_run_has_its_own_checks(project: ProjectHarness) -> None:
    for shard, caption_of in {"a": short, "b": lambda _: "A car drives by.", "c": lambda _: None}.items():
        store_captions(project, caption_of, shard=shard)
    result = project.run(STAGES[0], partitions=("a", "c"))
    assert not result.success
    failed = {(found.partition, found.check_name) for found in evaluations(project, result) if not found.passed}
    assert failed == {("b", "duplicate_captions"), ("c", "failed_fraction")}
    assert len(evaluations(project, result)) == 3 * len(checks_of(GENERAL.graph, STAGE1))


def test_checks_of_a_range_of_one_shard_have_its_partition(project: ProjectHarness) -> None:
    store_captions(project, short, shard="a")
    result = project.run(STAGES[0], partitions=("a", "a"))
    assert result.success
    found = evaluations(project, result)
    assert {evaluation.partition for evaluation in found} == {"a"}
    assert len(found) == len(checks_of(GENERAL.graph, STAGE1))


def test_checks_of_an_unselected_stage_are_not_evaluated(project: ProjectHarness) -> None:
    store_captions(project, short, short)
    result = project.run(STAGES[1], partition="a")
    assert checks(project, result, STAGES[0]) == {}
    assert failing(project, result, STAGES[1]) == {"adds_to_stage1"}


def test_check_selected_alone_reads_the_stored_table(project: ProjectHarness) -> None:
    store_captions(project, short, short)
    key = dg.AssetKey(STAGES[1])
    result = project.run(checks=[dg.AssetCheckKey(key, "adds_to_stage1")], partition="a")
    assert result.success
    assert failing(project, result, STAGES[1]) == {"adds_to_stage1"} == set(checks(project, result, STAGES[1]))
    assert materialized(project, result) == {}


def test_check_of_missing_captions_fails_with_the_remedy(project: ProjectHarness) -> None:
    project.instance.add_dynamic_partitions("shards", ["a"])
    publish_manifest(Root.open(str(project.root)), "a", CLIPS, {})
    message = project.failure(checks=[dg.AssetCheckKey(dg.AssetKey(STAGES[0]), "schema")], partition="a")
    assert "materialize stage1_captions for shard 'a' first" in message


def length_check(project: ProjectHarness, shard: str, **settings: object) -> dg.AssetCheckEvaluation:
    result = project.run(STAGES[0], partition=shard, **settings)  # type: ignore[arg-type]
    assert result.success
    return checks(project, result, STAGES[0])["caption_length"]


def test_caption_length_is_compared_with_earlier_shards(project: ProjectHarness) -> None:
    for count in range(6):
        store_captions(project, shard=f"earlier-{count}")
        assert length_check(project, f"earlier-{count}").metadata["earlier_shards"].value == count
    store_captions(project, lambda clip: short(clip) * 5, shard="long")
    for _ in range(2):
        check = length_check(project, "long")
        assert not check.passed
        assert check.metadata["earlier_shards"].value == 6


def test_metadata_has_an_example_of_each_kind_of_failure(project: ProjectHarness) -> None:
    store_captions(project, manifest=[broken("x.mp4")])
    result = project.run(*STAGES, partition="a", max_unreadable_fraction=1.0)
    assert result.success
    kinds = dict(zip(STAGES, ("unreadable", "upstream_failed"), strict=True))
    for stage, event in materialized(project, result).items():
        assert event.metadata["dagster/row_count"].value == 1
        assert f"| {kinds[stage]} | 1 | x.mp4 |" in str(event.metadata["errors_by_kind"].value)


def test_long_texts_and_images_are_in_the_gallery_only(project: ProjectHarness) -> None:
    store_captions(project, lambda clip: f"{short(clip)} " + "It is long. " * 500)
    for event in materialized(project, project.run(*STAGES, partition="a")).values():
        assert "errors_by_kind" not in event.metadata
        assert "data:image" not in str(event.metadata)
        assert event.metadata["gallery"].value == "http://127.0.0.1:3001/gallery/a/index.html"
        assert len(str(event.metadata["captions"].value)) < 1000
        page = (project.root / "gallery" / "a" / "index.html").read_text()
        assert "It is long. " * 500 in page
        assert '<img src="data:image/png;base64,' in page


def test_run_adds_its_shards_to_the_dashboard(project: ProjectHarness) -> None:
    for shard, clips in (("a", CLIPS), ("b", CLIPS[:5])):
        store_captions(project, shard=shard, manifest=clips)
        assert project.run(*STAGES, partition=shard).success
    page = (project.root / "gallery" / "index.html").read_text()
    assert '["a",12,12,0,0,' in page
    assert '["b",5,5,0,0,' in page


def test_dashboard_that_cannot_be_written_does_not_fail_the_run(project: ProjectHarness) -> None:
    store_captions(project)
    (project.root / "gallery" / "index.html").mkdir(parents=True)
    result = project.run(*STAGES, partition="a")
    assert result.success
    assert (project.root / "gallery" / "a" / "index.html").exists()


def test_gallery_and_metadata_count_words_and_flags_alike(project: ProjectHarness) -> None:
    store_captions(
        project, lambda clip: "\u7ea2\u8272\u7684\u8f66 - it is red, isn't it?", reductions=("fewer_frames",)
    )
    for number, event in enumerate(materialized(project, project.run(*STAGES, partition="a")).values(), 1):
        page = (project.root / "gallery" / "a" / "index.html").read_text()
        figures = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", page))
        assert figures[f"mean words in stage {number}"] == f"{float(str(event.metadata['mean_words'].value)):.1f}"
        assert figures[f"flagged in stage {number}"] == str(event.metadata["flagged"].value) == "0"
        assert event.metadata["reduced"].value == len(CLIPS)


def test_assets_explain_their_metadata(tmp_path: Path, sample_data: Path) -> None:
    project = ProjectHarness(tmp_path)
    shutil.copytree(sample_data / "shards" / "sample-folder", project.root / "shards" / "a")
    (project.root / "shards" / "a" / "notes.md").write_text("x")
    (project.root / "shards" / "loose.mp4").touch()
    assert project.run("shard_index").success
    assert project.run("clip_manifest", "model_weights", partition="a").success
    store_captions(project, manifest=read_manifest(Root.open(str(project.root)), "a"))
    assert project.run(*STAGES, DATASET, partition="a", export="jsonl").success
    graph = build_definitions(Settings(root=str(project.root), recipe="general", export="jsonl")).resolve_asset_graph()
    for asset in ("shard_index", "clip_manifest", "model_weights", *STAGES, DATASET):
        [record] = project.instance.fetch_materializations(dg.AssetKey(asset), limit=1).records
        assert record.asset_materialization
        entries = {name for name in record.asset_materialization.metadata if not name.startswith("dagster/")}
        explained = str(graph.get(dg.AssetKey(asset)).metadata["metadata_entries"].value)
        assert {entry for entry in entries if f"| {entry} |" not in explained} == set(), asset


def test_assets_describe_their_columns(project: ProjectHarness) -> None:
    graph = build_definitions(Settings(root=str(project.root), recipe="general")).resolve_asset_graph()
    schema = graph.get(dg.AssetKey(STAGES[1])).metadata["dagster/column_schema"]
    assert isinstance(schema, dg.TableSchemaMetadataValue)
    columns = {column.name: column for column in schema.schema.columns}
    assert columns["clip_key"].constraints.nullable is False
    assert columns["attempts"].type == "int32"
    assert "if it was cut off" in str(columns["finish_reason"].description)
    assert list(columns)[-1] == "upstream_fingerprints"


def test_damaged_mirror_fails_its_check_and_blocks_the_captions(project: ProjectHarness) -> None:
    assert checks(project, project.run("model_weights"), "model_weights")["weights_verified"].passed
    [file] = (project.root / "weights").rglob("config.json")
    file.write_text(file.read_text().replace("1", "2"))
    store_captions(project)
    result = project.run("model_weights", *STAGES, partition="a")
    check = checks(project, result, "model_weights")["weights_verified"]
    assert not check.passed
    assert check.metadata["example"].value == f"{SAMPLE.folder}/config.json"
    assert "Set CAPTION_VERIFY_WEIGHTS=true" in str(check.description)
    assert materialized(project, result) == {}

    repaired = project.run("model_weights", *STAGES, partition="a", verify_weights=True)
    assert checks(project, repaired, "model_weights")["weights_verified"].passed
    assert list(materialized(project, repaired)) == STAGES


def test_run_over_one_shard_exports_its_dataset(project: ProjectHarness) -> None:
    store_captions(project)
    result = project.run(*STAGES, DATASET, partition="a", export="jsonl")
    assert result.success
    assert list(materialized(project, result)) == [*STAGES, DATASET]
    logged = [entry.user_message for entry in project.instance.all_logs(result.run_id)]
    assert [message for message in logged if "did not yield or return expected outputs" in message] == []


def test_run_over_several_shards_cannot_export_their_datasets(project: ProjectHarness) -> None:
    for shard in ("a", "b"):
        store_captions(project, shard=shard)
    message = project.failure(STAGES[1], DATASET, partitions=("a", "b"), export="jsonl")
    assert "deselect captioned_dataset, and materialize it afterwards" in message


def test_runs_over_one_shard_and_several_record_the_same_versions(project: ProjectHarness) -> None:
    for shard in ("a", "b"):
        store_captions(project, shard=shard)
    weights = dg.AssetMaterialization("model_weights", tags={"dagster/data_version": "1"})
    project.instance.report_runless_asset_event(weights)
    assert project.run(*STAGES, partition="a").success
    assert project.run(*STAGES, partitions=("a", "b")).success
    for upstream, stage in pairwise(["clip_manifest", *STAGES]):
        records = project.instance.fetch_materializations(dg.AssetKey(stage), limit=9).records
        tags = [(record.asset_materialization and record.asset_materialization.tags) or {} for record in records]
        versions = [
            {name: text for name, text in found.items() if "version" in name and "partition" not in name}
            for found, record in zip(tags, records, strict=True)
            if record.partition_key == "a"
        ]
        assert len(versions) == 2
        assert versions[0] == versions[1]
        assert f"dagster/input_data_version/{upstream}" in versions[0]
