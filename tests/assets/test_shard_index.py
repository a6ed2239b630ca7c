import os
import shutil
from pathlib import Path

import dagster as dg
import pytest

from tests.assets.conftest import ProjectHarness

pytestmark = pytest.mark.fast


def test_shard_index_registers_all_shards(project: ProjectHarness) -> None:
    assert project.run("shard_index").success
    assert list(project.instance.get_dynamic_partitions("shards")) == ["sample-folder", "sample-tar"]


def test_shard_index_materializes_each_shard_once(project: ProjectHarness) -> None:
    for _ in range(2):
        assert project.run("shard_index").success
    records = project.instance.fetch_materializations(dg.AssetKey("shards"), limit=10).records
    assert sorted(str(record.partition_key) for record in records) == ["sample-folder", "sample-tar"]


def test_observed_version_changes_with_the_shards_content(project: ProjectHarness) -> None:
    def versions() -> dict[str, str]:
        project.run("shard_index")
        records = project.instance.fetch_observations(dg.AssetKey("shards"), limit=2).records
        observed = [record.asset_observation for record in records]
        return {str(o.partition): o.tags["dagster/data_version"] for o in observed if o}

    before = versions()
    (project.root / "shards" / "sample-folder" / "new.mp4").write_bytes(b"new")
    after = versions()
    assert before["sample-tar"] == after["sample-tar"]
    assert before["sample-folder"] != after["sample-folder"]


def test_entries_that_are_not_registered_are_named(project: ProjectHarness) -> None:
    source = project.root / "shards"
    (source / "loose.mp4").touch()
    (source / "new.TAR").touch()
    (source / "empty").mkdir()
    Path(os.fsdecode(bytes(source) + b"/\xff.txt")).touch()
    result = project.run("shard_index")
    metadata = result.asset_materializations_for_node("shard_index")[0].metadata
    assert metadata["skipped"].value == 3
    assert "| 1 | loose.mp4 |" in str(metadata["skipped_entries"].value)
    assert "| 1 | new.TAR |" in str(metadata["skipped_entries"].value)
    assert "| 1 | \\udcff.txt |" in str(metadata["skipped_entries"].value)
    assert metadata["empty_folders"].value == ["empty"]
    assert list(project.instance.get_dynamic_partitions("shards")) == ["sample-folder", "sample-tar"]


def test_modification_time_in_the_future_is_named(project: ProjectHarness) -> None:
    os.utime(project.root / "shards" / "sample-tar.tar", (0, 1 << 33))
    metadata = project.run("shard_index").asset_materializations_for_node("shard_index")[0].metadata
    assert metadata["modified_in_the_future"].value == ["sample-tar"]
    assert "sample-tar" in project.instance.get_dynamic_partitions("shards")


def test_missing_source_fails_with_the_remedy(project: ProjectHarness) -> None:
    shutil.rmtree(project.root / "shards")
    assert "set CAPTION_SOURCE" in project.failure("shard_index")


def test_source_of_loose_videos_fails_with_the_remedy(project: ProjectHarness) -> None:
    source = project.root / "shards"
    shutil.rmtree(source)
    source.mkdir()
    (source / "loose.mp4").touch()
    assert "1 videos but no shards: did you mean the parent folder?" in project.failure("shard_index")
