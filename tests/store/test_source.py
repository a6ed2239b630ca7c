"""Tests of sources in object storage."""

from __future__ import annotations

import boto3
import pytest

from caption_assets.sources.shard import SkipReason, find_shard, list_shards, shard_content
from caption_assets.store.root import Root

pytestmark = pytest.mark.store


def test_keys_without_a_name_are_not_shards(s3_url: str) -> None:
    source = Root.open(s3_url)
    bucket, prefix = source.path.split("/")
    markers = ("", "a/", "b/")
    files = ("a/clip.mp4", "/clip.mp4", "//deep.mp4", "./clip.mp4", "../clip.mp4", ".hidden/x", "c.tar")
    for key in (*markers, *files):
        boto3.client("s3").put_object(Bucket=bucket, Key=f"{prefix}/{key}", Body=b"" if key in markers else b"data")
    listing = list_shards(source)
    assert [shard.key for shard in listing.shards] == ["a", "b", "c"]
    assert listing.skipped == {SkipReason.UNNAMED: ["/", ".", ".."], SkipReason.HIDDEN: [".hidden"]}
    assert shard_content(source, find_shard(source, "b")).changed is None
