import io
import tarfile
from pathlib import Path

import pytest

from caption_assets.clips.listing import list_clips
from caption_assets.clips.shard import Layout, ShardError, content_version, find_shard, list_shards
from caption_assets.store.root import Root

pytestmark = pytest.mark.fast


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / "b" / "deep" / "two.MP4").write_bytes(b"two")
    (tmp_path / "b" / "one.webm").write_bytes(b"one!")
    (tmp_path / "b" / "notes.txt").write_bytes(b"no clip")
    write_tar(tmp_path / "a.tar", {"x/three.mp4": b"three", "x/three.json": b"{}"})
    (tmp_path / "README.md").write_text("no shard")
    return tmp_path


def write_tar(path: Path, members: dict[str, bytes], links: dict[str, str] | None = None) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)


def test_folders_and_tars_are_shards_sorted_by_key(folder: Path) -> None:
    shards = list_shards(Root.open(str(folder)))
    assert [(shard.key, shard.layout) for shard in shards] == [("a", Layout.TAR), ("b", Layout.FOLDER)]


@pytest.mark.parametrize(
    ("key", "expected"),
    [("a", {"x/three.mp4": b"three"}), ("b", {"deep/two.MP4": b"two", "one.webm": b"one!"})],
)
def test_clips_are_the_videos_of_a_shard_with_their_bytes(folder: Path, key: str, expected: dict[str, bytes]) -> None:
    source = Root.open(str(folder))
    clips = list_clips(source, find_shard(source, key))
    assert {clip.key: clip.video.read() for clip in clips} == expected
    assert [clip.key for clip in clips] == sorted(expected)


def test_a_json_file_of_the_same_stem_goes_with_its_clip(folder: Path) -> None:
    (folder / "b" / "one.json").write_text('{"prompt": "Count."}')
    source = Root.open(str(folder))
    prompts = {clip.key: clip.prompt() for key in "ab" for clip in list_clips(source, find_shard(source, key))}
    assert prompts == {"x/three.mp4": None, "deep/two.MP4": None, "one.webm": "Count."}


def test_a_link_in_a_tar_is_no_clip(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", {"a.mp4": b"a"}, links={"b.mp4": "/etc/passwd"})
    source = Root.open(str(tmp_path))
    assert [clip.key for clip in list_clips(source, find_shard(source, "s"))] == ["a.mp4"]


def test_a_changed_shard_has_another_version_and_an_untouched_one_the_same(folder: Path) -> None:
    source = Root.open(str(folder))
    before = {shard.key: content_version(source, shard) for shard in list_shards(source)}
    (folder / "b" / "new.mp4").write_bytes(b"new")
    after = {shard.key: content_version(source, shard) for shard in list_shards(source)}
    assert before["a"] == after["a"]
    assert before["b"] != after["b"]
    (folder / "b" / "new.json").write_text('{"prompt": "Count."}')
    assert content_version(source, find_shard(source, "b")) != after["b"]


def test_a_missing_source_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="CAPTION_SOURCE"):
        list_shards(Root.open(str(tmp_path / "nowhere")))


def test_a_missing_shard_names_those_there_are(folder: Path) -> None:
    with pytest.raises(ShardError, match=r"'c' is not in .* \(it has 2: a, b\)"):
        find_shard(Root.open(str(folder)), "c")


def test_a_key_that_cannot_be_a_partition_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a,b").mkdir()
    with pytest.raises(ShardError, match=r"'a,b' .* rename"):
        list_shards(Root.open(str(tmp_path)))


def test_two_shards_of_one_key_are_refused(folder: Path) -> None:
    (folder / "a").mkdir()
    with pytest.raises(ShardError, match="same key"):
        list_shards(Root.open(str(folder)))


def test_a_file_that_is_no_tar_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(b"not a tar at all" * 100)
    source = Root.open(str(tmp_path))
    with pytest.raises(ShardError, match="'s' cannot be read"):
        list_clips(source, find_shard(source, "s"))
