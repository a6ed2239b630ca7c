"""The asset checks on a real instance. Captions are laid down beforehand, so that no engine is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import dagster as dg
import pytest

from caption_assets.captioning.open_shard import facts
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.rows import blank_row, stage1_failed
from caption_assets.report.findings import CHECKS
from caption_assets.store.root import Root
from caption_assets.store.tables import CaptionRow, ManifestRow, Status, Table, publish_captions, read_manifest
from tests.assets.conftest import Project

pytestmark = pytest.mark.fast

STAGES = [Table.STAGE1.value, Table.STAGE2.value]
SETTLED = 99
"""Attempts after which a row that failed is not tried again."""

Say = Callable[[ManifestRow], str | None]


@pytest.fixture
def probed(project: Project) -> Project:
    """The sample shards with their manifests."""
    project.run("shard_index", "model_weights")
    for shard in ("sample-folder", "sample-tar"):
        assert project.run("clip_manifest", partition=shard).success
    return project


def lay_down(project: Project, shard: str, stage1: Say, stage2: Say | None = None) -> None:
    """Publish captions that a run takes over as they are; None is one that failed for good."""
    root, recipe = Root.open(str(project.root)), Recipe()
    manifest = read_manifest(root, shard)
    first = [_row(recipe, 1, window, stage1(window)) for window in manifest]
    tables = {Table.STAGE1: first}
    if stage2:
        tables[Table.STAGE2] = [
            _row(recipe, 2, window, stage2(window), before) if before.caption else stage1_failed(recipe, window)
            for window, before in zip(manifest, first, strict=True)
        ]
    for table, rows in tables.items():
        publish_captions(root, table, shard, rows, [row.key for row in manifest], facts(recipe, table))


def _row(
    recipe: Recipe, stage: int, window: ManifestRow, caption: str | None, stage1: CaptionRow | None = None
) -> CaptionRow:
    blank = blank_row(recipe, stage, window, stage1)
    if window.status is Status.FAILED:
        return replace(blank, error_kind=window.error_kind, error=window.error)
    if caption is None:
        return replace(blank, error_kind="engine", error="no answer", attempts=SETTLED)
    return replace(blank, status=Status.OK, caption=caption, finish_reason="stop", attempts=1)


def short(window: ManifestRow) -> str:
    return f"The clip {window.clip_key} shows window {window.window_index}."


def full(window: ManifestRow) -> str:
    return f"{short(window)} Something moves slowly from left to right."


def evaluations(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, dg.AssetCheckEvaluation]:
    """What a run over one shard found of an asset, by check."""
    found = [one for one in result.get_asset_check_evaluations() if one.asset_key == dg.AssetKey(asset)]
    assert len({one.check_name for one in found}) == len(found)
    return {one.check_name: one for one in found}


def failing(result: dg.ExecuteInProcessResult, asset: str) -> set[str]:
    return {name for name, one in evaluations(result, asset).items() if not one.passed}


def test_every_check_is_evaluated_for_the_shard_and_points_to_its_materialization(probed: Project) -> None:
    lay_down(probed, "sample-tar", short, full)
    result = probed.run(*STAGES, partition="sample-tar")
    assert result.success
    for table, checks in CHECKS.items():
        found = evaluations(result, table.value)
        assert list(found) == [check.name for check in checks]
        assert all(one.passed and one.partition == "sample-tar" and one.description for one in found.values())
        [record] = probed.instance.fetch_materializations(dg.AssetKey(table.value), limit=9).records
        targets = {
            one.target_materialization_data and one.target_materialization_data.storage_id for one in found.values()
        }
        assert targets == {record.storage_id}


def test_warnings_are_shown_and_the_shard_is_materialized_all_the_same(probed: Project) -> None:
    lay_down(probed, "sample-tar", lambda _: "A car drives by, again.", lambda _: "A car drives by, again.")
    result = probed.run(*STAGES, partition="sample-tar")
    assert result.success
    assert failing(result, STAGES[0]) == {"duplicate_captions"}
    assert failing(result, STAGES[1]) == {"duplicate_captions", "adds_to_stage1"}
    duplicates = evaluations(result, STAGES[0])["duplicate_captions"]
    assert duplicates.severity is dg.AssetCheckSeverity.WARN
    assert duplicates.metadata["count"].value == 11
    assert duplicates.metadata["most_clips_with_one_caption"].value == 12


def test_a_shard_with_too_many_failures_is_not_materialized_and_its_check_says_why(probed: Project) -> None:
    lay_down(probed, "sample-tar", short, lambda window: None if window.clip_key < "clip-02" else full(window))
    result = probed.run(*STAGES, partition="sample-tar")
    assert not result.success
    assert [event.asset_key.to_user_string() for event in materializations(result)] == [STAGES[0]]
    assert failing(result, STAGES[0]) == set()
    assert failing(result, STAGES[1]) == {"failed_fraction"}
    failed = evaluations(result, STAGES[1])["failed_fraction"]
    assert failed.severity is dg.AssetCheckSeverity.ERROR
    assert "more than CAPTION_MAX_FAILED_FRACTION = 0.05" in str(failed.description)
    [event] = [event for event in result.all_events if event.is_step_failure]
    assert str(failed.description) in str(event.step_failure_data.user_failure_data)
    lenient = probed.run(*STAGES, partition="sample-tar", max_failed_fraction=0.5)
    assert lenient.success
    assert failing(lenient, STAGES[1]) == set()


def materializations(result: dg.ExecuteInProcessResult) -> list[dg.AssetMaterialization]:
    return result.asset_materializations_for_node("captions")


def test_a_stage_selected_alone_is_checked_alone(probed: Project) -> None:
    lay_down(probed, "sample-tar", short, full)
    probed.run(*STAGES, partition="sample-tar")
    result = probed.run(STAGES[1], partition="sample-tar")
    assert evaluations(result, STAGES[0]) == {}
    assert evaluations(result, STAGES[1])["adds_to_stage1"].metadata["equal"].value == 0


def test_a_check_selected_alone_looks_at_what_is_stored(probed: Project) -> None:
    lay_down(probed, "sample-tar", short, short)
    key = dg.AssetKey(STAGES[1])
    result = probed.run(checks=[dg.AssetCheckKey(key, "adds_to_stage1")], partition="sample-tar")
    assert result.success
    assert failing(result, STAGES[1]) == {"adds_to_stage1"} == set(evaluations(result, STAGES[1]))
    assert probed.instance.fetch_materializations(key, limit=1).records == []


def test_a_check_of_captions_that_there_are_not_says_what_to_materialize(probed: Project) -> None:
    message = probed.failure(checks=[dg.AssetCheckKey(dg.AssetKey(STAGES[0]), "schema")], partition="sample-tar")
    assert "materialize stage1_captions for shard 'sample-tar' first" in message


def test_lengths_are_compared_with_shards_that_were_captioned_alike(probed: Project) -> None:
    for place in range(6):
        shard = f"earlier-{place}"
        (probed.root / "shards" / f"{shard}.jsonl").write_text('{"uri": "sample-folder/clip-00.webm"}')
        probed.run("shard_index")
        probed.run("clip_manifest", partition=shard)
        lay_down(probed, shard, full)
        assert evaluations(probed.run(STAGES[0], partition=shard), STAGES[0])["caption_length"].metadata[
            "earlier_shards"
        ].value == min(place, 6)
    lay_down(probed, "sample-tar", lambda window: full(window) * 5)
    result = probed.run(STAGES[0], partition="sample-tar")
    assert result.success
    assert failing(result, STAGES[0]) == {"caption_length"}
    again = probed.run(STAGES[0], partition="sample-tar")
    assert evaluations(again, STAGES[0])["caption_length"].metadata["earlier_shards"].value == 6


def test_a_shard_without_captions_is_materialized_without_plots_of_them(probed: Project) -> None:
    (probed.root / "shards" / "bad.jsonl").write_text('{"uri": "../x.mp4"}')
    probed.run("shard_index")
    probed.run("clip_manifest", partition="bad", max_unreadable_fraction=1.0)
    result = probed.run(*STAGES, partition="bad")
    assert result.success
    for event in materializations(result):
        assert event.metadata["dagster/row_count"].value == 1
        assert "caption_length" not in event.metadata
        assert "data:image/png;base64," in str(event.metadata["failures"].value)
        assert "__/x.mp4" in str(event.metadata["errors_by_kind"].value)


def test_columns_are_told_with_their_types_and_meaning(probed: Project) -> None:
    lay_down(probed, "sample-tar", short, full)
    [_, stage2] = materializations(probed.run(*STAGES, partition="sample-tar"))
    schema = stage2.metadata["dagster/column_schema"].value
    assert isinstance(schema, dg.TableSchema)
    columns = {column.name: column for column in schema.columns}
    assert columns["clip_key"].constraints.nullable is False
    assert columns["attempts"].type == "int32"
    assert (
        columns["finish_reason"].description == "``stop`` if the model ended its answer, ``length`` if it was cut off."
    )
    assert list(columns)[-1] == "stage1_fingerprint"


def test_a_damaged_mirror_is_found_and_keeps_captions_from_being_made(probed: Project) -> None:
    weights = probed.run("model_weights")
    assert evaluations(weights, "model_weights")["weights_verified"].passed
    [file] = (probed.root / "weights").rglob("config.json")
    file.write_text(file.read_text().replace("1", "2"))
    result = probed.run("model_weights", *STAGES, partition="sample-tar")
    assert not result.success
    check = evaluations(result, "model_weights")["weights_verified"]
    assert not check.passed
    assert check.metadata["example"].value == "config.json"
    assert "Set CAPTION_VERIFY_WEIGHTS=true" in str(check.description)
    assert not [event for event in result.all_events if event.is_step_start and event.step_key == "captions"]
    mended = probed.run("model_weights", verify_weights=True)
    assert evaluations(mended, "model_weights")["weights_verified"].passed
