"""Tests of unreadable objects, foreign objects and unlistable folders of a shard in an object store."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import unquote

import dagster as dg
import pytest

from caption_assets.automation.new_shards import build_new_shards
from caption_assets.captioning.caption_run import CaptionRun
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.shard_queue import caption_shards
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.resources import build_storage
from caption_assets.settings import Settings
from caption_assets.sources.manifest import probe_clips
from caption_assets.sources.shard import find_shard
from caption_assets.store.checkpoints import checkpoint_folder, write_checkpoint
from caption_assets.store.dataset import read_table
from caption_assets.store.failure import StoreError
from caption_assets.store.lease import Leases
from caption_assets.store.root import Root
from caption_assets.store.tables import CLIP_MANIFEST, publish_manifest, read_captions, table_path
from caption_assets.store.versions import read_versions
from caption_assets.video.window import Windowing
from tests.captioning.fake_engine import FakeEngine, start_fake_engine
from tests.captioning.run_events import RunEvents
from tests.conftest import SANDBOX
from tests.stages import STAGE1, STAGE2, STAGES
from tests.store.conftest import StartProxy
from tests.store.fault_proxy import Refusal, Request
from tests.videos import moving_video

pytestmark = pytest.mark.store

SHARDS = ("a", "b", "c")


@pytest.fixture
def source(tmp_path: Path) -> Root:
    """Three shards with one clip each."""
    for shard in SHARDS:
        (tmp_path / shard).mkdir()
        (tmp_path / shard / "clip.mp4").write_bytes(moving_video(24, size=(64, 64)))
    return Root.open(str(tmp_path))


@pytest.fixture
def url(s3_url: str, source: Root) -> str:
    """A root with the shards' manifests; shard b also has captions, a checkpoint and a released lease."""
    root = Root.open(s3_url)
    for shard in SHARDS:
        clips = probe_clips(SANDBOX, source, find_shard(source, shard), Windowing(24, 12))
        publish_manifest(root, shard, (row for clip in clips for row in clip.rows), {})
    assert run(root, source, "b").failures == {}
    write_checkpoint(root, "b", 1, 0, {STAGE1.name: read_captions(root, STAGE1.name, "b")}, {})
    with Leases(root, "run 7") as leases:
        leases.acquire("b")
    return s3_url


def run(root: Root, source: Root, *shards: str) -> RunEvents:
    events = RunEvents()
    supervisor = EngineSupervisor(lambda: start_fake_engine(FakeEngine()))
    asyncio.run(caption_shards(supervisor, SANDBOX, CaptionRun(root, source, Recipe(), STAGES), shards, [events]))
    return events


@pytest.mark.parametrize(
    "forbidden",
    [
        table_path(CLIP_MANIFEST, "b"),
        table_path(STAGE1.name, "b"),
        table_path(STAGE2.name, "b"),
        f"{checkpoint_folder('b')}/000001-000000-stage1_captions.parquet",
        f"{checkpoint_folder('b')}/lease-",
    ],
)
def test_unreadable_object_fails_only_its_shard(
    url: str, source: Root, start_proxy: StartProxy, forbidden: str
) -> None:
    def rule(request: Request) -> Refusal | None:
        reads = request.method == "GET" and f"/{forbidden}" in unquote(request.target)
        return Refusal(403, "AccessDenied") if reads else None

    start_proxy(rule=rule)
    root = Root.open(url)
    events = run(root, source, *SHARDS)
    assert set(events.tables) == {"a", "c"}
    assert events.failures.keys() == {"b"}
    assert forbidden in events.failures["b"]
    assert "access denied" in events.failures["b"]
    assert root.exists(f"{checkpoint_folder('b')}/000001-000000-stage1_captions.parquet")


def test_refused_read_of_versions_is_not_reported_as_damage(url: str, start_proxy: StartProxy) -> None:
    start_proxy(rule=lambda request: Refusal(403, "AccessDenied") if request.method == "GET" else None)
    with pytest.raises(StoreError, match=r"cannot read .*: access denied"):
        read_versions(Root.open(url), CLIP_MANIFEST, "b")


def test_table_of_all_shards_is_read_unless_an_object_is_unreadable(url: str, start_proxy: StartProxy) -> None:
    assert read_table(url, CLIP_MANIFEST, columns=["shard"]).to_pylist() == [{"shard": shard} for shard in SHARDS]
    forbidden = table_path(CLIP_MANIFEST, "b")
    start_proxy(rule=lambda request: Refusal(403, "AccessDenied") if forbidden in unquote(request.target) else None)
    with pytest.raises(StoreError, match=rf"cannot read .*{forbidden}: access denied"):
        read_table(url, CLIP_MANIFEST)


@pytest.mark.parametrize("name", ["lease-000009", "000001-000001-stage1_captions.parquet", "notes.parquet"])
def test_foreign_object_below_a_checkpoints_name_is_ignored(url: str, source: Root, name: str) -> None:
    root = Root.open(url)
    root.write(f"{checkpoint_folder('b')}/{name}/something", b"foreign")
    events = run(root, source, *SHARDS)
    assert set(events.tables) == set(SHARDS)
    assert events.failures == {}


def test_unlistable_shard_does_not_block_others(s3_url: str, start_proxy: StartProxy, tmp_path: Path) -> None:
    source = Root.open(s3_url)
    for shard in SHARDS:
        source.write(f"{shard}/clip.mp4", b"video")

    def rule(request: Request) -> Refusal | None:
        return Refusal(403, "AccessDenied") if "prefix=prefix/b/" in unquote(request.target) else None

    start_proxy(rule=rule)
    settings = Settings(root=str(tmp_path), source=s3_url, shard_quiet_minutes=0)
    with dg.DagsterInstance.ephemeral() as instance, dg.build_sensor_context(instance) as context:
        result = build_new_shards(settings)(context, storage=build_storage(settings))
    assert isinstance(result, dg.SensorResult)
    [request] = result.dynamic_partitions_requests or ()
    assert list(request.partition_keys) == ["a", "c"]
