import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from caption_assets.sources.shard import (
    Layout,
    ShardError,
    SkipReason,
    find_shard,
    list_shards,
    refuse_loose_videos,
    shard_content,
)
from caption_assets.store.root import Root
from tests.sources.conftest import tar_bytes

pytestmark = pytest.mark.fast


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / "b" / "one.webm").write_bytes(b"one!")
    (tmp_path / "a.tar").write_bytes(tar_bytes(("x/three.mp4", b"three")))
    (tmp_path / "c.parquet").write_bytes(b"")
    (tmp_path / "d.jsonl").write_bytes(b"")
    (tmp_path / "README.md").write_text("no shard")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def version(folder: Path, key: str) -> str:
    source = Root.open(str(folder))
    return shard_content(source, find_shard(source, key)).version


def test_list_shards_returns_folders_tars_and_lists_sorted_by_key(folder: Path) -> None:
    shards = list_shards(Root.open(str(folder))).shards
    assert [(shard.key, shard.layout) for shard in shards] == [
        ("a", Layout.TAR),
        ("b", Layout.FOLDER),
        ("c", Layout.LIST),
        ("d", Layout.LIST),
    ]


@pytest.mark.parametrize("key", ["a", "b", "c", "d"])
def test_a_changed_shard_changes_its_version_alone(folder: Path, key: str) -> None:
    before = {key: version(folder, key) for key in "abcd"}
    changed = {"a": "a.tar", "b": "b/new.mp4", "c": "c.parquet", "d": "d.jsonl"}[key]
    (folder / changed).write_bytes(b"something else")
    assert [one for one in "abcd" if version(folder, one) != before[one]] == [key]


@pytest.mark.parametrize("name", ["new.json", "new.txt", "deep/new.MP4"])
def test_the_version_of_a_folder_covers_videos_and_sidecar_files(folder: Path, name: str) -> None:
    before = version(folder, "b")
    (folder / "b" / name).write_text("{}")
    assert version(folder, "b") != before


@pytest.mark.parametrize("name", ["notes.md", ".new.mp4"])
def test_the_version_of_a_folder_ignores_other_and_hidden_files(folder: Path, name: str) -> None:
    before = version(folder, "b")
    (folder / "b" / name).write_text("x")
    assert version(folder, "b") == before


def test_a_missing_source_is_reported_with_its_setting(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="CAPTION_SOURCE"):
        list_shards(Root.open(str(tmp_path / "nowhere")))


def test_a_missing_shard_is_reported_with_the_existing_ones(folder: Path) -> None:
    with pytest.raises(ShardError, match=r"'x' is not in .* \(it has 4: a, b, c, d\)"):
        find_shard(Root.open(str(folder)), "x")


def test_a_shard_with_an_invalid_partition_key_is_refused_and_the_others_are_listed(folder: Path) -> None:
    (folder / "a,b").mkdir()
    listing = list_shards(Root.open(str(folder)))
    assert [shard.key for shard in listing.shards] == ["a", "b", "c", "d"]
    assert list(listing.refused) == ["a,b"]
    assert "use ASCII letters, digits" in listing.refused["a,b"]


def test_names_of_refused_shards_are_shown_in_one_line(folder: Path) -> None:
    (folder / "new\nline").mkdir()
    listing = list_shards(Root.open(str(folder)))
    assert list(listing.refused) == [r"new\nline"]
    assert r"new\nline" in listing.keys


@pytest.mark.parametrize("name", ["b.tar", "b.parquet", "b.jsonl"])
def test_shards_with_the_same_key_are_refused(folder: Path, name: str) -> None:
    (folder / name).touch()
    listing = list_shards(Root.open(str(folder)))
    assert [shard.key for shard in listing.shards] == ["a", "c", "d"]
    assert set(listing.refused) == {"b", name}


def test_the_time_of_a_shard_is_that_of_its_newest_file(folder: Path) -> None:
    newest = datetime(2021, 1, 2, tzinfo=UTC)
    for name in ("b/one.webm", "a.tar"):
        os.utime(folder / name, (0, newest.timestamp()))
    (folder / "b" / "deep" / "older.mp4").touch()
    os.utime(folder / "b" / "deep" / "older.mp4", (0, 0))
    (folder / "empty").mkdir()
    source = Root.open(str(folder))
    assert [shard_content(source, find_shard(source, key)).changed for key in ("a", "b", "empty")] == [
        newest,
        newest,
        None,
    ]


@pytest.mark.parametrize("seconds_ahead", [3_600, 10 * 365 * 86_400, 1 << 45])
def test_a_modification_time_in_the_future_is_counted_and_otherwise_ignored(folder: Path, seconds_ahead: int) -> None:
    written = datetime.now(UTC).replace(microsecond=0)
    os.utime(folder / "b" / "one.webm", (0, written.timestamp()))
    (folder / "b" / "deep" / "odd.mp4").touch()
    os.utime(folder / "b" / "deep" / "odd.mp4", (0, written.timestamp() + seconds_ahead))
    source = Root.open(str(folder))
    content = shard_content(source, find_shard(source, "b"))
    assert (content.changed, content.future) == (written, 1)


def test_skipped_entries_are_listed_by_reason(folder: Path) -> None:
    for name in ("loose.MP4", "e.tar.gz", "f.TGZ", "g.TAR", "h.Parquet", "i.jsonl.zst"):
        (folder / name).touch()
    (folder / "linked").symlink_to(folder / "b")
    (folder / "linked.tar").symlink_to(folder / "b")
    os.mkfifo(folder / "pipe.tar")
    listing = list_shards(Root.open(str(folder)))
    assert [shard.key for shard in listing.shards] == ["a", "b", "c", "d"]
    assert listing.skipped == {
        SkipReason.LOOSE_VIDEO: ["loose.MP4"],
        SkipReason.ARCHIVE: ["e.tar.gz", "f.TGZ", "i.jsonl.zst"],
        SkipReason.SUFFIX: ["g.TAR", "h.Parquet"],
        SkipReason.LINKED_FOLDER: ["linked", "linked.tar"],
        SkipReason.SPECIAL: ["pipe.tar"],
        SkipReason.HIDDEN: [".hidden"],
        SkipReason.OTHER: ["README.md"],
    }


def test_a_link_to_a_tar_is_a_shard(folder: Path) -> None:
    (folder / "z.tar").symlink_to(folder / "a.tar")
    assert "z" in list_shards(Root.open(str(folder))).keys


def test_a_source_of_loose_videos_is_refused_with_the_likely_mistake(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.MTS", "notes.md"):
        (tmp_path / name).touch()
    source = Root.open(str(tmp_path))
    with pytest.raises(ShardError, match="2 videos but no shards: did you mean the parent folder"):
        refuse_loose_videos(source, list_shards(source))
    (tmp_path / "shard").mkdir()
    refuse_loose_videos(source, list_shards(source))
