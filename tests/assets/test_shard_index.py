import shutil

import dagster as dg
import pytest

from tests.assets.conftest import Project

pytestmark = pytest.mark.fast


def test_every_shard_becomes_a_partition(project: Project) -> None:
    assert project.run("shard_index").success
    assert list(project.instance.get_dynamic_partitions("shards")) == ["sample-folder", "sample-tar"]


def test_the_shards_observed_version_is_their_content(project: Project) -> None:
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


def test_a_missing_source_fails_with_the_remedy(project: Project) -> None:
    shutil.rmtree(project.root / "shards")
    assert "set CAPTION_SOURCE" in project.failure("shard_index")
