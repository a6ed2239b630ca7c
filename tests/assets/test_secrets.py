from pathlib import Path

import pytest
from s3fs import S3FileSystem

from caption_assets.store.root import Root
from tests.assets.conftest import Project

pytestmark = pytest.mark.store

PLANTED = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDKEY",
    "AWS_SECRET_ACCESS_KEY": "planted/secret",
    "AWS_SESSION_TOKEN": "planted-token",
}


@pytest.mark.parametrize("bucket", ["the right one", "no-such-bucket"])
def test_no_secret_is_in_what_dagster_keeps_of_a_run(
    request: pytest.FixtureRequest, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket: str
) -> None:
    if request.config.getoption("--s3-server") != "moto":
        pytest.skip("this server does not know the planted keys")
    Root.open(s3_url).write("shards/shard/a.mp4", b"data")
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()
    project = Project(tmp_path)
    source = f"{s3_url}/shards" if bucket == "the right one" else f"s3://{bucket}/shards"
    result = project.run("shard_index", root=s3_url, source=source)
    kept = "\n".join(map(str, [*result.all_events, *project.instance.all_logs(result.run_id)]))
    assert result.success is (bucket == "the right one")
    assert result.success or f"CAPTION_SOURCE is '{source}': cannot list {source}: there is no such bucket" in kept
    assert source in kept
    for secret in PLANTED.values():
        assert secret not in kept
