import re
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from caption_assets.definitions import build_definitions
from caption_assets.export.index import DATASET
from caption_assets.report.gallery import gallery_path
from caption_assets.settings import Settings
from caption_assets.store.corrections import Correction, Decision, save_correction
from caption_assets.store.root import Root
from caption_assets.store.tables import Status, read_captions, read_manifest
from tests.assets.conftest import ProjectHarness
from tests.export.shards import lines, samples
from tests.export.tokenizers import save_tokenizer, unigram
from tests.report.windows import captioned, failed, publish_stage
from tests.stages import STAGE2, STAGES, TABLE_NAMES

pytestmark = pytest.mark.fast

SHARD = "sample-tar"
EXPORT = {"export": "webdataset", "recipe": "general"}


@pytest.fixture
def captioned_project(project: ProjectHarness) -> ProjectHarness:
    """A project with a manifest and stored captions of a shard."""
    assert project.run("shard_index").success
    assert project.run("clip_manifest", partition=SHARD).success
    caption(project)
    return project


def caption(project: ProjectHarness, text: str = "A circle.") -> None:
    root = Root.open(str(project.root))
    rows = read_manifest(root, SHARD)
    captions = [captioned(row, text) if row.status is Status.OK else failed(row, "not_a_video") for row in rows]
    for stage in STAGES:
        publish_stage(root, stage, captions, shard=SHARD)


def materialize(project: ProjectHarness, **settings: object) -> dg.AssetMaterialization:
    result = project.run(DATASET, partition=SHARD, **{**EXPORT, **settings})  # type: ignore[arg-type]
    assert result.success
    (event,) = result.get_asset_materialization_events()
    return event.materialization


def metadata_of(materialization: dg.AssetMaterialization) -> dict[str, Any]:
    return {name: value.value for name, value in materialization.metadata.items()}


def version(materialization: dg.AssetMaterialization) -> str:
    return (materialization.tags or {})["dagster/data_version"]


def test_export_counts_samples_and_left_out_windows(captioned_project: ProjectHarness) -> None:
    metadata = metadata_of(materialize(captioned_project))
    root = Root.open(str(captioned_project.root))
    assert metadata["left_out"] == 1
    assert metadata["left_out_by_reason"] == {"clip_manifest: text": 1}
    assert metadata["windows"] == 12
    assert metadata["samples"] == metadata["clips"] == len(samples(root, SHARD)) == 11
    assert metadata["path"] == root.address(f"captioned_dataset/data/shard={SHARD}")
    for record, video in samples(root, SHARD):
        assert len(video) == record["bytes"]


def test_export_writes_json_lines(captioned_project: ProjectHarness) -> None:
    assert metadata_of(materialize(captioned_project, export="jsonl"))["samples"] == 12
    assert len(lines(Root.open(str(captioned_project.root)), SHARD)) == 12


def test_data_version_changes_only_with_the_captions(captioned_project: ProjectHarness) -> None:
    first, again = materialize(captioned_project), materialize(captioned_project)
    assert version(first) == version(again)
    assert (metadata_of(first)["written"], metadata_of(again)["written"]) == (True, False)
    caption(captioned_project, "A square.")
    assert version(materialize(captioned_project)) != version(first)


def test_new_correction_reaches_dataset_metadata_and_gallery(captioned_project: ProjectHarness) -> None:
    root = Root.open(str(captioned_project.root))
    first = materialize(captioned_project, export="jsonl")
    rows = [row for row in read_captions(root, STAGE2.name, SHARD) if row.caption]
    save_correction(root, SHARD, Correction.of(rows[0], STAGE2.name, Decision.REWRITE, "ann", caption="A cube."))
    save_correction(root, SHARD, Correction.of(rows[1], STAGE2.name, Decision.REJECT, "bob", reason="no circle"))
    again = materialize(captioned_project, export="jsonl")
    assert version(again) != version(first)
    metadata = metadata_of(again)
    assert metadata["corrections"] == {"accepted": 0, "rejected": 1, "rewritten": 1, "outdated": 0, "unmatched": 0}
    assert metadata["left_out_by_reason"] == {"clip_manifest: text": 1, "rejected": 1}
    assert lines(root, SHARD)[0]["stage2_caption"] == "A cube."
    gallery = root.read(gallery_path(SHARD)).decode()
    assert '"cube"' in gallery
    assert "no circle" in gallery


def test_dataset_without_windows_is_a_warning_with_the_reasons(captioned_project: ProjectHarness) -> None:
    where = "clip_seconds > 1000"
    result = captioned_project.run(DATASET, partition=SHARD, **{**EXPORT, "export_where": where})  # type: ignore[arg-type]
    warnings = [entry.user_message for entry in captioned_project.instance.all_logs(result.run_id) if entry.level == 30]
    assert result.success
    assert any(re.search(rf"{SHARD}: all windows are left out of the dataset \(.*where: \d+", one) for one in warnings)


def test_texts_over_the_trainers_limit_fail_a_check(captioned_project: ProjectHarness, tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path / "t5", unigram())
    limit: Any = {**EXPORT, "export_tokenizer": str(folder), "export_max_tokens": 2}
    result = captioned_project.run(DATASET, partition=SHARD, **limit)
    assert result.success
    checks = {check.check_name: check for check in result.get_asset_check_evaluations()}
    assert {name: check.passed for name, check in checks.items()} == {"equal_texts": True, "tokens_within_limit": False}
    assert checks["tokens_within_limit"].metadata["fraction"].value == 1.0
    [event] = result.get_asset_materialization_events()
    assert metadata_of(event.materialization)["tokens"]["over_limit"] == 12


def test_shard_without_captions_fails_with_the_remedy(project: ProjectHarness) -> None:
    assert project.run("shard_index").success
    assert project.run("clip_manifest", partition=SHARD).success
    message = project.failure(DATASET, partition=SHARD, **EXPORT)
    assert "materialize stage1_captions for shard 'sample-tar' first" in message


def test_dataset_asset_exists_only_if_configured() -> None:
    key = dg.AssetKey(DATASET)
    assert key not in build_definitions(Settings()).get_repository_def().asset_graph.get_all_asset_keys()
    graph = build_definitions(Settings(export="jsonl", recipe="general")).get_repository_def().asset_graph
    assert {parent.to_user_string() for parent in graph.get(key).parent_keys} == set(TABLE_NAMES)
    tars = build_definitions(Settings(export="webdataset")).get_repository_def().asset_graph
    assert graph.get(key).code_version != tars.get(key).code_version
