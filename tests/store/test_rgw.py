"""Tests that need a server which checks keys."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
from s3fs import S3FileSystem

from caption_assets.sources.shard import ShardError, list_shards
from caption_assets.store.failure import StoreError
from caption_assets.store.root import Root

pytestmark = pytest.mark.rgw


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    if request.config.getoption("--s3-server") != "rgw":
        pytest.skip("needs Ceph's gateway: make test-rgw")
    return str(request.getfixturevalue("s3_url"))


@pytest.mark.parametrize(
    ("variable", "remedy"),
    [
        ("AWS_SECRET_ACCESS_KEY", "the store computes another signature for the request: check the keys"),
        ("AWS_ACCESS_KEY_ID", "unknown access key: check AWS_ACCESS_KEY_ID"),
    ],
)
def test_wrong_keys_are_distinguished(url: str, monkeypatch: pytest.MonkeyPatch, variable: str, remedy: str) -> None:
    monkeypatch.setenv(variable, "planted")
    S3FileSystem.clear_instance_cache()
    with pytest.raises(StoreError, match=rf"CAPTION_ROOT is '{url}', which is not writable \({remedy}"):
        Root.open(url).check_writable("CAPTION_ROOT")
    with pytest.raises(StoreError, match=rf"cannot read {url}/file: {remedy}") as refused:
        Root.open(url).read("file")
    assert "planted" not in str(refused.value)
    with pytest.raises(ShardError, match=rf"CAPTION_SOURCE is '{url}': cannot list {url}: {remedy}"):
        list_shards(Root.open(url))


def test_denied_prefix_is_an_error_with_its_path(url: str) -> None:
    root = Root.open(url)
    root.write("denied/file", b"")
    bucket = root.path.partition("/")[0]
    statement = {
        "Effect": "Deny",
        "Principal": {"AWS": ["*"]},
        "Action": ["s3:GetObject", "s3:PutObject"],
        "Resource": [f"arn:aws:s3:::{bucket}/prefix/denied/*"],
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    boto3.client("s3").put_bucket_policy(Bucket=bucket, Policy=policy)
    denied = "access denied: allow the request in the policy"
    with pytest.raises(StoreError, match=rf"cannot read {url}/denied/file: {denied}"):
        root.read("denied/file")
    with pytest.raises(StoreError, match=rf"cannot write {url}/denied/new: {denied}"):
        root.write("denied/new", b"")
    with pytest.raises(StoreError, match=rf"CAPTION_ROOT is '{url}/denied', which is not writable \({denied}"):
        Root.open(f"{url}/denied").check_writable("CAPTION_ROOT")
    root.write("allowed/new", b"")


def test_concurrent_creations_have_one_winner_in_every_race(url: str) -> None:
    root = Root.open(url)
    assert root.supports_create()
    with ThreadPoolExecutor(16) as pool:
        for race in range(20):
            created = list(pool.map(lambda number, race=race: root.create(f"{race}", b"%d" % number), range(16)))
            assert created.count(True) == 1


def test_multipart_upload_preserves_content(url: str, tmp_path: Path) -> None:
    data = bytes(range(256)) * (440 << 10)  # 110 MiB: s3fs sends more than 100 in parts
    (tmp_path / "file").write_bytes(data)
    root = Root.open(url)
    root.upload("large", tmp_path / "file")
    assert root.read("large") == data
    root.download("large", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
