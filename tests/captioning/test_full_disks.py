"""Tests of full disks under one of three shards: its failure names the folder, the free bytes and the remedy."""

from __future__ import annotations

import asyncio
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from caption_assets.captioning.request import Completion, Request
from caption_assets.store.checkpoints import checkpoint_folder
from caption_assets.store.root import Root
from caption_assets.store.tables import read_captions, read_manifest, table_path
from tests.captioning.fake_engine import FakeEngine
from tests.captioning.harness import Harness
from tests.captioning.run_events import RunEvents
from tests.disks import enlarge, fill, small_disk
from tests.stages import STAGE1, STAGE2

SHARDS = ("a", "b", "c")
FREE = r"no space left on the disk of {folder} \([0-9,]+ of [0-9,]+ bytes are free"


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    """Three shards of one clip each."""
    harness = Harness(tmp_path)
    for shard in SHARDS:
        harness.add_clips(shard, f"{shard}-one")
    return harness


@pytest.fixture
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that TMPDIR names."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)  # as in a new process
    return folder


class LongAnswers(FakeEngine):
    """An engine with long, incompressible answers for the windows of one shard.

    They wait until the tables of the other shards, which need the same disk, are published.
    """

    def __init__(self, harness: Harness, shard: str) -> None:
        super().__init__(harness.count)
        self._root = harness.root
        self._windows = {row.window_id for row in read_manifest(harness.root, shard)}
        self._others = set(SHARDS) - {shard}

    async def complete(self, request: Request) -> Completion:
        answer = await super().complete(request)
        if request.video_id.split("-")[0] not in self._windows:
            return answer
        while not all(self._root.exists(table_path(STAGE2.name, shard)) for shard in self._others):
            await asyncio.sleep(0.01)
        return replace(answer, text=" ".join(f"{Random(answer.text + str(n)).getrandbits(64):x}" for n in range(3000)))


def assert_only_b_failed(events: RunEvents) -> str:
    assert set(events.tables) == {"a", "c"}
    assert events.failures.keys() == {"b"}
    return events.failures["b"]


@pytest.mark.fast
@pytest.mark.parametrize("table", [STAGE1.name, STAGE2.name])
def test_full_disk_of_one_table_fails_its_shard_and_keeps_finished_rows(harness: Harness, table: str) -> None:
    with small_disk(Path(harness.root.full(f"{table}/shard=b")), kilobytes=4) as folder:
        failure = assert_only_b_failed(harness.run(*SHARDS))
        assert_names_disk(failure, folder)
        assert "CAPTION_ROOT" in failure
        assert list(folder.iterdir()) == []
        enlarge(folder)
        assert harness.run(*SHARDS).failures == {}
        assert harness.requests.total() == 0
        assert len(read_captions(harness.root, table, "b")) == 2


def assert_names_disk(message: str, folder: Path) -> None:
    assert re.search(FREE.format(folder=re.escape(str(folder))), message), message
    assert "free space there" in message


@pytest.mark.parametrize(
    "store", [pytest.param("", marks=pytest.mark.fast), pytest.param("s3", marks=pytest.mark.store)]
)
def test_full_temporary_folder_fails_the_shard_with_the_large_table(
    harness: Harness, temporary_folder: Path, store: str, request: pytest.FixtureRequest
) -> None:
    if store:
        use_root(harness, Root.open(request.getfixturevalue("s3_url")))
    with small_disk(temporary_folder, kilobytes=64) as folder:
        failure = assert_only_b_failed(harness.run(*SHARDS, engine=LongAnswers(harness, "b")))
        assert_names_disk(failure, folder)
        assert "TMPDIR" in failure
        assert list(folder.iterdir()) == []
        enlarge(folder)
        assert harness.run(*SHARDS).failures == {}
        assert harness.requests.total() == 0
        assert len(read_captions(harness.root, STAGE2.name, "b")) == 2


def use_root(harness: Harness, root: Root) -> None:
    """Give the harness another root with the same manifests."""
    for shard in SHARDS:
        path = f"clip_manifest/shard={shard}/manifest.parquet"
        root.write(path, harness.root.read(path))
    harness.root = root


@pytest.mark.fast
def test_full_disk_of_checkpoints_is_a_warning(harness: Harness) -> None:
    with small_disk(Path(harness.root.full(checkpoint_folder("b"))), kilobytes=4) as folder:
        events = harness.run(*SHARDS, checkpoint_rows=1)
        assert events.failures == {}
        assert set(events.tables) == set(SHARDS)
        [warning] = [text for text in events.warnings if "a checkpoint could not be written" in text]
        assert warning.startswith("b: ")
        assert_names_disk(warning, folder)


@pytest.mark.fast
def test_full_disk_of_leases_fails_the_shard(harness: Harness) -> None:
    with small_disk(Path(harness.root.full(checkpoint_folder("b"))), kilobytes=8) as folder:
        fill(folder)
        assert_names_disk(assert_only_b_failed(harness.run(*SHARDS)), folder)


@pytest.mark.fast
def test_full_disk_of_previews_is_a_warning(harness: Harness) -> None:
    with small_disk(Path(harness.root.full("gallery/b/previews")), kilobytes=4) as folder:
        events = harness.run(*SHARDS, previews=True)
        assert set(events.tables) == set(SHARDS)
        [warning] = events.warnings
        assert warning.startswith("b: ")
        assert_names_disk(warning, folder)
        assert len(harness.root.names("gallery/a/previews")) == 2


@pytest.mark.fast
def test_disk_without_free_inodes_fails_the_shard(harness: Harness) -> None:
    with small_disk(Path(harness.root.full("stage1_captions/shard=b")), files=1) as folder:
        assert_names_disk(assert_only_b_failed(harness.run(*SHARDS)), folder)
