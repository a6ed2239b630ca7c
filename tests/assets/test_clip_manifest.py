import shutil
from uuid import uuid4

import dagster as dg
import pytest

from caption_assets.dagster_lib.run_request import request_tags
from caption_assets.settings import Settings
from caption_assets.store.root import Root
from caption_assets.store.tables import Status, read_manifest
from tests.assets.conftest import ProjectHarness

pytestmark = pytest.mark.fast


@pytest.fixture
def indexed(project: ProjectHarness) -> ProjectHarness:
    """A project with registered shards."""
    assert project.run("shard_index").success
    return project


@pytest.mark.parametrize(("shard", "kind"), [("sample-folder", "damaged"), ("sample-tar", "text")])
def test_manifest_has_the_windows_and_the_unreadable_clip(indexed: ProjectHarness, shard: str, kind: str) -> None:
    result = indexed.run("clip_manifest", partition=shard)
    assert result.success
    [event] = result.get_asset_materialization_events()
    metadata = {name: value.value for name, value in event.materialization.metadata.items()}
    assert (metadata["clips"], metadata["rows_ok"], metadata["rows_failed"]) == (12, 12, 1)
    assert metadata["errors_by_kind"] == {kind: 1}
    assert 0 < float(str(metadata["bytes_read_fraction"])) <= 1
    rows = read_manifest(Root.open(str(indexed.root)), shard)
    assert len(rows) == 13
    recipe = Settings().caption_recipe
    assert metadata["predicted_visual_tokens"] == sum(recipe.predicted_tokens(row) for row in rows)
    [broken] = [row for row in rows if row.status is Status.FAILED]
    assert str(broken.error) in str(metadata["unreadable_clips"])


def test_windows_are_cut_by_seconds_if_configured(indexed: ProjectHarness) -> None:
    assert indexed.run("clip_manifest", partition="sample-folder", window_seconds=1.0).success
    rows = read_manifest(Root.open(str(indexed.root)), "sample-folder")
    assert len(rows) > 13
    assert all((row.end_seconds or 0) - (row.start_seconds or 0) < 1.51 for row in rows)


def test_data_version_does_not_depend_on_the_number_of_workers(indexed: ProjectHarness) -> None:
    versions = set()
    for workers in (1, 3):
        result = indexed.run("clip_manifest", partition="sample-tar", decode_workers=workers)
        [event] = result.get_asset_materialization_events()
        versions.add((event.materialization.tags or {})["dagster/data_version"])
    assert len(versions) == 1


def newest_evaluation(project: ProjectHarness) -> dg.AssetCheckEvaluation:
    """The latest evaluation of a check of a manifest."""
    [run] = project.instance.get_runs(limit=1)
    found = project.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    return found[-1].get_dagster_event().asset_check_evaluation_data


@pytest.mark.parametrize("last", ["sample-folder", "sample-tar"])
def test_check_of_the_manifest_passes_with_the_number_of_clips(indexed: ProjectHarness, last: str) -> None:
    assert indexed.run("clip_manifest", partitions=("sample-folder", last)).success
    evaluation = newest_evaluation(indexed)
    assert (evaluation.passed, evaluation.partition) == (True, last)
    assert str(evaluation.description).startswith("12 clips, ")


def test_too_many_unreadable_clips_fail_the_step_but_the_table_is_published(indexed: ProjectHarness) -> None:
    strict = {"max_unreadable_fraction": 0.05, "max_unreadable_clips": 0}
    message = indexed.failure("clip_manifest", partition="sample-tar", **strict)
    limits = "CAPTION_MAX_UNREADABLE_FRACTION = 0.05 and CAPTION_MAX_UNREADABLE_CLIPS = 0"
    assert f"1 of 12 clips are unreadable, more than {limits}; the first: 'clip-11-not-a-video.mp4': " in message
    assert len(read_manifest(Root.open(str(indexed.root)), "sample-tar")) == 13
    [record] = indexed.instance.fetch_observations(dg.AssetKey("clip_manifest"), limit=10).records
    assert record.partition_key == "sample-tar"
    assert record.asset_observation is not None
    metadata = {name: str(value.value) for name, value in record.asset_observation.metadata.items()}
    assert "1 of 12 clips are unreadable" in metadata["error"]
    assert "clip-11-not-a-video.mp4" in metadata["unreadable_clips"]
    evaluation = newest_evaluation(indexed)
    assert (evaluation.check_name, evaluation.passed, evaluation.partition) == ("clips_readable", False, "sample-tar")
    assert evaluation.description == metadata["error"]
    assert evaluation.metadata.keys() == {"path", "unreadable_clips"}
    assert metadata["path"].endswith("clip_manifest/shard=sample-tar/manifest.parquet")
    assert indexed.instance.get_materialized_partitions(dg.AssetKey("clip_manifest")) == set()


def test_captions_of_a_shard_with_too_many_unreadable_clips_are_refused(indexed: ProjectHarness) -> None:
    (indexed.root / "shards" / "broken").mkdir()
    (indexed.root / "shards" / "broken" / "clip.mp4").write_bytes(b"no video")
    assert indexed.run("shard_index").success
    manifest = indexed.root / "clip_manifest" / "shard=broken" / "manifest.parquet"
    message = indexed.failure("clip_manifest", partition="broken")
    assert "1 of 1 clips are unreadable, more than CAPTION_MAX_UNREADABLE_FRACTION = 0.1; the first: 'clip." in message
    made = manifest.stat().st_mtime_ns

    assert indexed.failure("stage1_captions", partition="broken") == message
    assert indexed.failure("stage1_captions", "stage2_captions", partitions=("broken", "broken")) == message
    assert not (indexed.root / "stage1_captions").exists()

    # Every row is an error, so that these captions need no engine.
    lenient = indexed.run("stage1_captions", partition="broken", max_unreadable_fraction=1.0)
    assert lenient.success
    assert manifest.stat().st_mtime_ns == made


def test_missing_shard_is_named(indexed: ProjectHarness) -> None:
    (indexed.root / "shards" / "sample-tar.tar").unlink()
    assert "shard 'sample-tar' is not in the source" in indexed.failure("clip_manifest", partition="sample-tar")


def test_unwritable_root_is_named_with_its_setting(indexed: ProjectHarness) -> None:
    blocked = indexed.folder / "file"
    blocked.write_text("not a folder")
    message = indexed.failure(
        "clip_manifest", partition="sample-tar", root=str(blocked / "root"), source=str(indexed.root / "shards")
    )
    assert message.startswith(f"CAPTION_ROOT is '{blocked}/root'")


@pytest.mark.parametrize("asset", ["clip_manifest", "stage1_captions", "model_weights"])
def test_run_of_another_root_records_nothing(indexed: ProjectHarness, asset: str) -> None:
    partition = None if asset == "model_weights" else "sample-tar"
    other = indexed.folder / "other"
    message = indexed.failure(asset, partition=partition, root=str(other), source=str(indexed.root / "shards"))
    assert f"belongs to CAPTION_ROOT={indexed.root}, not to CAPTION_ROOT={other}" in message
    assert indexed.instance.get_latest_materialization_event(dg.AssetKey(asset)) is None


def test_run_of_another_source_records_nothing(indexed: ProjectHarness) -> None:
    other = indexed.folder / "other"
    message = indexed.failure("clip_manifest", partition="sample-tar", source=str(other))
    assert f"belongs to CAPTION_SOURCE={indexed.root}/shards, not to CAPTION_SOURCE={other}" in message


def test_scheduled_run_skips_shards_that_it_was_not_requested_for(indexed: ProjectHarness) -> None:
    assert indexed.run("clip_manifest", partition="sample-folder").success
    tags = request_tags(dg.AssetKey("clip_manifest"), {"sample-tar": "1"}, "tick")
    result = indexed.run("clip_manifest", partitions=("sample-folder", "sample-tar"), tags=tags)
    made = {event.partition: event.materialization for event in result.get_asset_materialization_events()}
    assert made.keys() == {"sample-folder", "sample-tar"}
    [first, again] = indexed.instance.fetch_materializations(
        dg.AssetRecordsFilter(dg.AssetKey("clip_manifest"), asset_partitions=["sample-folder"]), limit=9
    ).records
    assert again.asset_materialization == first.asset_materialization == made["sample-folder"]


def test_missing_shard_of_a_run_fails_no_other_shard(indexed: ProjectHarness) -> None:
    (indexed.root / "shards" / "sample-tar.tar").unlink()
    message = indexed.failure("clip_manifest", partitions=("sample-folder", "sample-tar"))
    assert message.startswith("sample-tar: shard 'sample-tar' is not in the source")
    assert indexed.instance.get_materialized_partitions(dg.AssetKey("clip_manifest")) == {"sample-folder"}


def test_shard_that_changes_while_it_is_probed_has_no_manifest(indexed: ProjectHarness) -> None:
    shard, run_id = indexed.root / "shards" / "sample-folder", str(uuid4())
    shutil.copy(shard / "clip-00.webm", shard / "new.webm")  # the step logs the new content, and then probes the clips

    def add_clip(event: dg.EventLogEntry) -> None:
        if event.dagster_event_type is dg.DagsterEventType.ASSET_OBSERVATION:
            shutil.copy(shard / "clip-00.webm", shard / "late.webm")

    indexed.instance.add_event_listener(run_id, add_clip)
    message = indexed.failure("clip_manifest", partition="sample-folder", run_id=run_id)
    assert "sample-folder: the shard changed while it was probed" in message
    assert not (indexed.root / "clip_manifest").exists()


def test_files_that_are_not_clips_are_counted_and_named(indexed: ProjectHarness) -> None:
    shard = indexed.root / "shards" / "sample-folder"
    for name in ("notes.md", "clips.zip"):
        (shard / name).write_text("x")
    [event] = indexed.run("clip_manifest", partition="sample-folder").get_asset_materialization_events()
    metadata = {name: value.value for name, value in event.materialization.metadata.items()}
    assert metadata["other_files"] == 2
    assert metadata["other_files_by_suffix"] == {".md": 1, ".zip": 1}
    assert metadata["other_file_names"] == ["clips.zip", "notes.md"]


def test_shard_without_clips_fails_with_its_files(indexed: ProjectHarness) -> None:
    shard = indexed.root / "shards" / "sample-folder"
    for clip in shard.iterdir():
        clip.unlink()
    (shard / "clips.tar.gz").write_text("x")
    assert "has no clips: 1 other files (.tar.gz)" in indexed.failure("clip_manifest", partition="sample-folder")


def test_projects_have_separate_manifests(indexed: ProjectHarness) -> None:
    assert indexed.run("clip_manifest", partition="sample-folder").success
    other = ProjectHarness(indexed.folder)
    other.root, other.instance = indexed.folder / "other", indexed.instance
    options = {"project": "north", "source": str(indexed.root / "shards")}
    assert other.run("shard_index", **options).success  # type: ignore[arg-type]
    assert other.run("clip_manifest", partitions=("sample-folder", "sample-tar"), **options).success  # type: ignore[arg-type]
    plain, north = dg.AssetKey("clip_manifest"), dg.AssetKey(["north", "clip_manifest"])
    assert indexed.instance.get_materialized_partitions(plain) == {"sample-folder"}
    assert indexed.instance.get_materialized_partitions(north) == {"sample-folder", "sample-tar"}
