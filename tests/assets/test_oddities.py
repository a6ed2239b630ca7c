"""Tests of unexpected errors, damaged files and full disks in one shard of a run: only that shard fails."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.storage.event_log import SqlEventLogStorage

from caption_assets.captioning.recipe_file import built_in
from caption_assets.checks.asset_checks import checks_of
from caption_assets.store.tables import CLIP_MANIFEST
from tests import damage
from tests.assets.conftest import ProjectHarness
from tests.assets.test_check_definitions import STAGES, evaluations, store_captions
from tests.disks import fill, small_disk
from tests.stages import STAGE1, STAGE2
from tests.videos import moving_video

SHARDS = ("a", "b", "c")
ALL = ("a", "c")
"""First and last shard of runs over all shards."""


@pytest.fixture
def project(tmp_path: Path) -> ProjectHarness:
    """A project with an empty root."""
    return ProjectHarness(tmp_path)


@pytest.fixture
def captioned(project: ProjectHarness) -> ProjectHarness:
    """Three shards with captions that a run reuses."""
    for shard in SHARDS:
        store_captions(project, shard=shard)
    return project


@pytest.fixture
def with_clips(project: ProjectHarness) -> ProjectHarness:
    """Three shards with one clip each."""
    for shard in SHARDS:
        clip = project.root / "shards" / shard / "clip.mp4"
        clip.parent.mkdir(parents=True)
        clip.write_bytes(moving_video(24, size=(64, 64)))
    assert project.run("shard_index").success
    return project


def materialized_shards(project: ProjectHarness, asset: str) -> set[str]:
    records = project.instance.fetch_materializations(dg.AssetKey(asset), limit=99).records
    return {str(record.partition_key) for record in records}


def reject_events(project: ProjectHarness, shard: str, kind: dg.DagsterEventType) -> None:
    """Make the instance's database reject a shard's events, like a damaged database."""
    storage = project.instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)
    with storage.index_connection() as connection:
        connection.exec_driver_sql(
            f"CREATE TRIGGER reject BEFORE INSERT ON event_logs WHEN NEW.partition = '{shard}' "
            f"AND NEW.dagster_event_type = '{kind.value}' BEGIN SELECT RAISE(ABORT, 'this page is malformed'); END"
        )


def steps_started(project: ProjectHarness, run: dg.ExecuteInProcessResult) -> int:
    kinds = (dg.DagsterEventType.STEP_START, dg.DagsterEventType.STEP_RESTARTED)
    return sum(len(project.instance.all_logs(run.run_id, of_type=kind)) for kind in kinds)


def failure_of(project: ProjectHarness, run: dg.ExecuteInProcessResult) -> str:
    [event] = project.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    failed = event.get_dagster_event().step_failure_data.user_failure_data
    assert failed is not None
    return str(failed.description)


@pytest.mark.fast
def test_unexpected_error_while_recording_captions_fails_only_its_shard(captioned: ProjectHarness) -> None:
    reject_events(captioned, "b", dg.DagsterEventType.ASSET_MATERIALIZATION)
    run = captioned.run(*STAGES, partitions=ALL)
    for stage in STAGES:
        assert materialized_shards(captioned, stage) == {"a", "c"}
    assert failure_of(captioned, run).startswith("b: unexpected ")
    assert "this page is malformed" in failure_of(captioned, run)
    assert steps_started(captioned, run) == 1
    logged = [entry.user_message for entry in captioned.instance.all_logs(run.run_id)]
    assert any(line.startswith("b: ") and "Traceback" in line for line in logged)


@pytest.mark.fast
def test_unexpected_error_while_recording_manifests_fails_only_its_shard(with_clips: ProjectHarness) -> None:
    reject_events(with_clips, "b", dg.DagsterEventType.ASSET_MATERIALIZATION)
    run = with_clips.run("clip_manifest", partitions=ALL)
    assert materialized_shards(with_clips, "clip_manifest") == {"a", "c"}
    assert failure_of(with_clips, run).startswith("b: unexpected ")
    assert steps_started(with_clips, run) == 1


@pytest.mark.faults
def test_unexpected_error_of_a_single_shard_is_not_retried(with_clips: ProjectHarness) -> None:
    reject_events(with_clips, "b", dg.DagsterEventType.ASSET_OBSERVATION)
    (with_clips.root / "shards" / "b" / "clip.mp4").write_bytes(
        moving_video(36, size=(64, 64))
    )  # so that it is observed
    run = with_clips.run("clip_manifest", partition="b")
    assert failure_of(with_clips, run).startswith("b: unexpected ")
    assert steps_started(with_clips, run) == 1


@pytest.mark.faults
@pytest.mark.parametrize("table", [CLIP_MANIFEST, STAGE1.name, STAGE2.name])
def test_checks_of_a_damaged_table_fail_only_its_shard(captioned: ProjectHarness, table: str) -> None:
    path = next((captioned.root / table / "shard=b").iterdir())
    damage.invert_pages(path)
    graph = built_in("general")
    selected = [
        dg.AssetCheckKey(dg.AssetKey(stage.name), check.name)
        for stage in graph.stages
        for check in checks_of(graph, stage)
    ]
    run = captioned.run(checks=selected, partitions=ALL)
    assert {evaluation.partition for evaluation in evaluations(captioned, run)} == {"a", "c"}
    message = failure_of(captioned, run)
    assert message.startswith("b: ")
    assert str(path) in message
    assert steps_started(captioned, run) == 1


@pytest.mark.faults
@pytest.mark.parametrize("table", [STAGE1.name, STAGE2.name])
def test_damaged_captions_are_not_reused(captioned: ProjectHarness, table: str) -> None:
    damage.change_texts(next((captioned.root / table / "shard=b").iterdir()))
    run = captioned.run(*STAGES, partitions=ALL)  # no weights exist to caption it again
    assert materialized_shards(captioned, STAGES[1]) == {"a"}
    logged = [entry.user_message for entry in captioned.instance.all_logs(run.run_id)]
    assert any(line.startswith("b: its earlier captions are not reused") for line in logged)


@pytest.mark.fast
def test_stage2_run_fails_for_a_shard_with_damaged_stage1_captions(captioned: ProjectHarness) -> None:
    path = next((captioned.root / STAGES[0] / "shard=b").iterdir())
    damage.drop_column("caption")(path)
    run = captioned.run(STAGES[1], partitions=ALL)
    assert materialized_shards(captioned, STAGES[1]) == {"a", "c"}
    assert f"{path} is damaged" in failure_of(captioned, run)
    assert "materialize stage1_captions for shard 'b' again" in failure_of(captioned, run)


@pytest.mark.fast
def test_full_disk_for_a_gallery_loses_no_captions(captioned: ProjectHarness) -> None:
    with small_disk(captioned.root / "gallery" / "b", kilobytes=4) as folder:
        run = captioned.run(*STAGES, partitions=ALL)
        assert run.success
        logged = [entry.user_message for entry in captioned.instance.all_logs(run.run_id)]
    [warning] = [line for line in logged if "cannot write the gallery" in line]
    assert warning.startswith("b: ")
    assert f"no space left on the disk of {folder}" in warning


@pytest.mark.faults
def test_full_disk_for_a_manifest_fails_only_its_shard(with_clips: ProjectHarness) -> None:
    with small_disk(with_clips.root / "clip_manifest" / "shard=b", kilobytes=4) as folder:
        run = with_clips.run("clip_manifest", partitions=ALL)
        assert list(folder.iterdir()) == []
    assert materialized_shards(with_clips, "clip_manifest") == {"a", "c"}
    assert f"no space left on the disk of {folder}" in failure_of(with_clips, run)


@pytest.mark.faults
def test_missing_temporary_folder_is_an_error_with_a_remedy(
    with_clips: ProjectHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "removed"))
    run = with_clips.run("clip_manifest", partitions=ALL)
    assert failure_of(with_clips, run).startswith("a: cannot create a temporary folder")
    assert "TMPDIR" in failure_of(with_clips, run)


@pytest.mark.faults
def test_full_disk_for_the_weights_cache_is_an_error_with_its_folder_and_setting(captioned: ProjectHarness) -> None:
    assert captioned.run("model_weights").success
    for stage in STAGES:
        next((captioned.root / stage / "shard=b").iterdir()).unlink()
    with small_disk(captioned.folder / "small", files=2) as folder:
        message = captioned.failure(*STAGES, partition="b", cache=str(folder))
    assert f"no space left on the disk of {folder} (" in message
    assert "bytes are free" in message
    assert "CAPTION_CACHE" in message


@pytest.mark.faults
def test_full_disk_for_an_export_fails_its_shard(captioned: ProjectHarness) -> None:
    with small_disk(captioned.root / "captioned_dataset" / "data" / "shard=b", kilobytes=8) as folder:
        fill(folder)
        message = captioned.failure("captioned_dataset", partition="b", export="jsonl")
        assert f"no space left on the disk of {folder}" in message
    assert captioned.run("captioned_dataset", partition="a", export="jsonl").success


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_run_captions_all_shards_except_one_with_a_damaged_lease(tmp_path: Path, sample_data: Path) -> None:
    project = ProjectHarness(tmp_path)
    for shard in SHARDS:
        shutil.copytree(sample_data / "shards" / "sample-folder", project.root / "shards" / shard)
    assert project.run("shard_index", "model_weights").success
    assert project.run("clip_manifest", partitions=ALL).success
    state = project.root / "_checkpoints" / "shard=b"
    state.mkdir(parents=True)
    (state / "lease-000001").write_bytes(b"")
    (project.root / "_checkpoints" / "shard=c").mkdir()
    (project.root / "_checkpoints" / "shard=c" / "000001-000000-stage1_captions.parquet").write_bytes(b"PAR1cut")
    run = project.run(*STAGES, partitions=ALL)
    for stage in STAGES:
        assert materialized_shards(project, stage) == {"a", "c"}
    assert failure_of(project, run).startswith(f"b: the lease {state / 'lease-000001'} is damaged")
    assert steps_started(project, run) == 1
    logged = [entry.user_message for entry in project.instance.all_logs(run.run_id)]
    assert any("c: " in line and "its captions are generated again" in line for line in logged)


@pytest.mark.fast
def test_run_over_several_shards_does_not_log_outputs_as_missing(captioned: ProjectHarness) -> None:
    run = captioned.run(*STAGES, partitions=ALL)
    assert run.success
    assert not [entry for entry in captioned.instance.all_logs(run.run_id) if "did not yield" in entry.user_message]
