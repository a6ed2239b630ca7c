"""Disks that run full under one of three shards: its failure names folder, free bytes and remedy."""

from __future__ import annotations

import asyncio
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from caption_assets.captioning.request import Completion, Request
from caption_assets.captioning.stages import STAGE1, STAGE2
from caption_assets.store.checkpoints import checkpoint_folder
from caption_assets.store.root import Root
from caption_assets.store.tables import read_captions, read_manifest, table_path
from tests.captioning.stand_in import StandIn
from tests.captioning.test_shard_queue import World
from tests.captioning.watch import Log
from tests.disks import enlarge, fill, small_disk

SHARDS = ("a", "b", "c")
FREE = r"no space left on the disk of {folder} \([0-9,]+ of [0-9,]+ bytes are free"


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Three shards of a clip each."""
    made = World(tmp_path)
    for shard in SHARDS:
        made.add_clips(shard, f"{shard}-one")
    return made


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that TMPDIR names."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)  # as in a new process
    return folder


class Talkative(StandIn):
    """Says much about the windows of one shard, and nothing that could be compressed.

    It waits for the tables of the others, which would find the disk full as well.
    """

    def __init__(self, world: World, shard: str) -> None:
        super().__init__(world.count)
        self._root = world.root
        self._windows = {row.window_id for row in read_manifest(world.root, shard)}
        self._others = set(SHARDS) - {shard}

    async def complete(self, request: Request) -> Completion:
        said = await super().complete(request)
        if request.video_id.split("-")[0] not in self._windows:
            return said
        while not all(self._root.exists(table_path(STAGE2.name, shard)) for shard in self._others):
            await asyncio.sleep(0.01)
        return replace(said, text=" ".join(f"{Random(said.text + str(n)).getrandbits(64):x}" for n in range(3000)))


def assert_only_b_failed(log: Log) -> str:
    assert set(log.tables) == {"a", "c"}
    assert log.failures.keys() == {"b"}
    return log.failures["b"]


@pytest.mark.fast
@pytest.mark.parametrize("table", [STAGE1.name, STAGE2.name])
def test_a_root_that_is_full_for_one_table_fails_its_shard_and_keeps_the_rows(world: World, table: str) -> None:
    with small_disk(Path(world.root.full(f"{table}/shard=b")), kilobytes=4) as folder:
        said = assert_only_b_failed(world.run(*SHARDS))
        assert_tells(said, folder)
        assert "CAPTION_ROOT" in said
        assert list(folder.iterdir()) == []
        enlarge(folder)
        assert world.run(*SHARDS).failures == {}
        assert world.asked.total() == 0
        assert len(read_captions(world.root, table, "b")) == 2


def assert_tells(message: str, folder: Path) -> None:
    assert re.search(FREE.format(folder=re.escape(str(folder))), message), message
    assert "free space there" in message


@pytest.mark.parametrize(
    "store", [pytest.param("", marks=pytest.mark.fast), pytest.param("s3", marks=pytest.mark.store)]
)
def test_a_full_folder_for_temporary_files_fails_the_shard_whose_table_does_not_fit(
    world: World, temporary: Path, store: str, request: pytest.FixtureRequest
) -> None:
    if store:
        move(world, Root.open(request.getfixturevalue("s3_url")))
    with small_disk(temporary, kilobytes=64) as folder:
        said = assert_only_b_failed(world.run(*SHARDS, engine=Talkative(world, "b")))
        assert_tells(said, folder)
        assert "TMPDIR" in said
        assert list(folder.iterdir()) == []
        enlarge(folder)
        assert world.run(*SHARDS).failures == {}
        assert world.asked.total() == 0
        assert len(read_captions(world.root, STAGE2.name, "b")) == 2


def move(world: World, root: Root) -> None:
    """Give the world another root, with the same manifests."""
    for shard in SHARDS:
        path = f"clip_manifest/shard={shard}/manifest.parquet"
        root.write(path, world.root.read(path))
    world.root = root


@pytest.mark.fast
def test_checkpoints_that_find_no_room_are_warned_of_and_cost_nothing(world: World) -> None:
    with small_disk(Path(world.root.full(checkpoint_folder("b"))), kilobytes=4) as folder:
        log = world.run(*SHARDS, checkpoint_rows=1)
        assert log.failures == {}
        assert set(log.tables) == set(SHARDS)
        [warning] = [one for one in log.warnings if "a checkpoint could not be written" in one]
        assert warning.startswith("b: ")
        assert_tells(warning, folder)


@pytest.mark.fast
def test_a_lease_that_finds_no_room_fails_its_shard(world: World) -> None:
    with small_disk(Path(world.root.full(checkpoint_folder("b"))), kilobytes=8) as folder:
        fill(folder)
        assert_tells(assert_only_b_failed(world.run(*SHARDS)), folder)


@pytest.mark.fast
def test_previews_that_find_no_room_cost_no_caption(world: World) -> None:
    with small_disk(Path(world.root.full("gallery/b/previews")), kilobytes=4) as folder:
        log = world.run(*SHARDS, previews=True)
        assert set(log.tables) == set(SHARDS)
        [warning] = log.warnings
        assert warning.startswith("b: ")
        assert_tells(warning, folder)
        assert len(world.root.names("gallery/a/previews")) == 4


@pytest.mark.fast
def test_a_disk_without_room_for_another_file_is_told_as_well(world: World) -> None:
    with small_disk(Path(world.root.full("stage1_captions/shard=b")), files=1) as folder:
        assert_tells(assert_only_b_failed(world.run(*SHARDS)), folder)
