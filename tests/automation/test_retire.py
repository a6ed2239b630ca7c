from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest

from caption_assets.automation.retire import RetireError, check, found, removed_shards, retire
from caption_assets.store.root import Root
from tests.automation.conftest import Site

pytestmark = pytest.mark.fast

MADE = (
    "clip_manifest/shard=a/manifest.parquet",
    "stage1_captions/shard=a/captions.parquet",
    "stage2_captions/shard=a/captions.parquet",
    "gallery/a/index.html",
    "gallery/a/previews/1.jpg",
    "captioned_dataset/data/shard=a/index.json",
    "_checkpoints/shard=a/lease-000001",
)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """What was made of shard a, and one object of another, whose name begins with it."""
    root = Root.open(str(tmp_path))
    for path in (*MADE, "gallery/ab/index.html"):
        root.write(path, b"x")
    return root


def test_a_retired_shard_leaves_nothing_but_its_source(site: Site, root: Root) -> None:
    site.add("a", "ab")
    site.look()
    assert len(found(root, "a")) == 6
    retire(site.instance, site.project, root, "a")
    assert found(root, "a") == []
    assert not any(root.exists(path) for path in MADE)
    assert root.exists("gallery/ab/index.html")
    assert (site.source / "a.jsonl").exists()
    assert site.registered == ["ab"]


def test_what_is_gone_from_the_source_is_found(site: Site) -> None:
    site.add("a", "b")
    site.look()
    (site.source / "b.jsonl").unlink()
    site.look()
    assert removed_shards(site.instance, site.project) == ["b"]


def test_a_shard_under_way_or_unknown_is_not_retired(site: Site) -> None:
    site.add("a")
    site.look()
    with pytest.raises(RetireError, match="'x' is no registered shard"):
        check(site.instance, site.project, ["a", "x"])
    site.launch(dg.RunRequest(tags={"dagster/partition": "a"}), dg.DagsterRunStatus.STARTED)
    with pytest.raises(RetireError, match="a run is under way for shard 'a'"):
        check(site.instance, site.project, ["a"])
