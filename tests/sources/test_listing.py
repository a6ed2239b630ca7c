import io
import os
import random
import tarfile
from pathlib import Path
from typing import Any

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from s3fs import S3FileSystem

from caption_assets.sources.clip import Clip
from caption_assets.sources.clip_key import normalize
from caption_assets.sources.listing import NAMED_FILES, OtherFiles, list_clips
from caption_assets.sources.shard import Layout, Shard, ShardError, find_shard, is_hidden
from caption_assets.store.root import Root
from tests.sources.conftest import outcomes, special, tar_bytes

FILES = {
    "x/three.mp4": b"three",
    "deep/er/two.MP4": b"two",
    "one.webm": b"one!",
    "one.json": b'{"prompt": "Count.", "n": 1}',
    "one.TXT": b"words",
    "three.json": b'{"prompt": "of another folder"}',
    "README.md": b"no clip",
    ".hidden.mp4": b"no clip",
    ".trash/old.mp4": b"no clip",
    "empty.mp4": b"",
}


def write(source: Root, layout: Layout, files: dict[str, bytes]) -> Shard:
    if layout is Layout.TAR:
        source.write("s.tar", tar_bytes(*files.items()))
    else:
        for name, data in files.items():
            source.write(f"s/{name}", data)
    return find_shard(source, "s")


def listed(folder: Path, data: bytes | None = None) -> list[Clip]:
    """The clips of the shard ``s``, which is a tar of ``data`` if given."""
    if data is not None:
        (folder / "s.tar").write_bytes(data)
    source = Root.open(str(folder))
    return list(list_clips(source, find_shard(source, "s")))


@pytest.mark.parametrize("layout", [Layout.FOLDER, Layout.TAR])
def test_list_clips_returns_the_videos_sorted_by_key_with_their_bytes(source: Root, layout: Layout) -> None:
    clips = list(list_clips(source, write(source, layout, FILES)))
    assert [(clip.key, clip.video.read()) for clip in clips] == [
        ("deep/er/two.MP4", b"two"),
        ("empty.mp4", b""),
        ("one.webm", b"one!"),
        ("x/three.mp4", b"three"),
    ]
    assert not any(clip.refusal for clip in clips)


@pytest.mark.parametrize("layout", [Layout.FOLDER, Layout.TAR])
def test_list_clips_pairs_json_and_text_files_with_the_clip_of_the_same_stem(source: Root, layout: Layout) -> None:
    clips = list(list_clips(source, write(source, layout, FILES)))
    assert [clip.metadata().prompt for clip in clips] == [None, None, "Count.", None]
    assert [clip.metadata().extra for clip in clips] == [{}, {}, {"n": 1, "txt": "words"}, {}]


@pytest.mark.parametrize("layout", [Layout.FOLDER, Layout.TAR])
def test_list_clips_reads_clips_with_special_characters_in_their_names(source: Root, layout: Layout) -> None:
    names = ["a#b.mp4", "a?b.mp4", "a%20b.mp4", "a*[b].mp4", "sp ace.mp4", "ünï.mp4", "a::b.mp4", "~.mp4", "a\\b.mp4"]
    clips = list_clips(source, write(source, layout, {name: name.encode() for name in names}))
    assert {clip.key: clip.video.read() for clip in clips} == {name: name.encode() for name in names}


@pytest.mark.fast
@pytest.mark.parametrize("layout", [Layout.FOLDER, Layout.TAR])
def test_list_clips_reads_a_clip_with_control_characters_in_its_name(tmp_path: Path, layout: Layout) -> None:
    source = Root.open(str(tmp_path))
    [clip] = list_clips(source, write(source, layout, {"new\nline\t\x1b[0m.mp4": b"data"}))
    assert (clip.key, clip.video.read()) == ("new\nline\t\x1b[0m.mp4", b"data")


@pytest.mark.fast
@pytest.mark.parametrize("layout", [Layout.FOLDER, Layout.TAR])
def test_a_name_that_is_not_utf_8_is_escaped_in_the_key_and_the_clip_is_read(tmp_path: Path, layout: Layout) -> None:
    if layout is Layout.TAR:
        (tmp_path / "s.tar").write_bytes(tar_bytes(("aXb.mp4", b"data")).replace(b"aXb", b"a\xffb", 1))
        raw = bytearray((tmp_path / "s.tar").read_bytes())
        raw[148:156] = b"%06o\0 " % (sum(raw[:148]) + 8 * 32 + sum(raw[156:512]))  # the header's checksum
        (tmp_path / "s.tar").write_bytes(raw)
    else:
        (tmp_path / "s").mkdir()
        Path(os.fsdecode(os.fsencode(tmp_path / "s") + b"/a\xffb.mp4")).write_bytes(b"data")
    [clip] = listed(tmp_path)
    assert (clip.key, clip.video.read()) == (r"a\udcffb.mp4", b"data")


@pytest.mark.fast
def test_a_long_name_is_kept(tmp_path: Path) -> None:
    [clip] = listed(tmp_path, tar_bytes(("n" * 5000 + ".mp4", b"data")))
    assert (clip.key, clip.video.read()) == ("n" * 5000 + ".mp4", b"data")


@pytest.mark.fast
def test_tar_members_that_are_links_devices_or_outside_the_root_are_refused(tmp_path: Path) -> None:
    data = tar_bytes(
        ("a.mp4", b"a"),
        ("../b.mp4", b"b"),
        ("/etc/c.mp4", b"c"),
        ("./d/./e.mp4", b"e"),
        special("f.mp4", tarfile.SYMTYPE, "/etc/passwd"),
        special("g.mp4", tarfile.LNKTYPE, "a.mp4"),
        special("h.mp4", tarfile.CHRTYPE),
        special("i.mp4", tarfile.DIRTYPE),
    )
    assert outcomes(listed(tmp_path, data)) == [
        ("__/b.mp4", "outside"),
        ("a.mp4", None),
        ("d/e.mp4", None),
        ("etc/c.mp4", "outside"),
        ("f.mp4", "link"),
        ("g.mp4", "link"),
        ("h.mp4", "not_a_file"),
    ]


@pytest.mark.fast
def test_the_first_of_several_tar_members_with_the_same_name_is_accepted(tmp_path: Path) -> None:
    link = special("a.mp4", tarfile.SYMTYPE, "/etc/passwd")
    clips = listed(tmp_path, tar_bytes(link, ("/a.mp4", b"z"), ("a.mp4", b"first"), ("./a.mp4", b"second")))
    assert outcomes(clips) == [("a.mp4", None), ("a.mp4#2", "duplicate"), ("a.mp4#3", "link"), ("a.mp4#4", "outside")]
    assert clips[0].video.read() == b"first"


@pytest.mark.fast
def test_a_clip_whose_sidecar_file_is_a_link_is_refused(tmp_path: Path) -> None:
    [clip] = listed(tmp_path, tar_bytes(("a.mp4", b"a"), special("a.json", tarfile.SYMTYPE, "/etc/passwd")))
    assert clip.refusal is not None
    assert (clip.refusal.kind, "'a.json' is a link" in str(clip.refusal)) == ("link", True)


@pytest.mark.fast
def test_a_sparse_tar_member_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.mp4")
    info.size, info.pax_headers = 512, {"GNU.sparse.map": "0,512", "GNU.sparse.size": "1024"}
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(b"x" * 512))
    assert outcomes(listed(tmp_path, file.getvalue())) == [("a.mp4", "sparse")]


@pytest.mark.fast
def test_links_in_a_folder_are_followed_only_to_files_within_the_source(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "s").mkdir(parents=True)
    (source / "other").mkdir()
    (source / "other" / "a.mp4").write_bytes(b"within")
    (tmp_path / "secret.mp4").write_bytes(b"without")
    (source / "s" / "a.mp4").symlink_to("../other/a.mp4")
    (source / "s" / "b.mp4").symlink_to(tmp_path / "secret.mp4")
    (source / "s" / "c.mp4").symlink_to("nowhere")
    (source / "s" / "d.mp4").symlink_to("d.mp4")
    (source / "s" / "folder").symlink_to("../other")
    os.mkfifo(source / "s" / "e.mp4")
    clips = listed(source)
    assert outcomes(clips) == [
        ("a.mp4", None),
        ("b.mp4", "link"),
        ("c.mp4", "link"),
        ("d.mp4", "link"),
        ("e.mp4", "not_a_file"),
        ("folder", "link"),
    ]
    assert [clip.video.read() for clip in clips if not clip.refusal] == [b"within"]


@pytest.mark.fast
def test_a_tar_that_is_a_link_to_a_path_outside_the_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.tar").write_bytes(tar_bytes(("a.mp4", b"a")))
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "s.tar").symlink_to("../elsewhere.tar")
    with pytest.raises(ShardError, match="'s' is a link to a path outside the source"):
        listed(tmp_path / "source")


@pytest.mark.store
def test_an_object_with_dot_segments_or_a_version_in_its_name_is_refused(s3_url: str) -> None:
    source = Root.open(s3_url)
    shard = write(source, Layout.FOLDER, {"a/../b.mp4": b"b", "d//e.mp4": b"e"})
    bucket, _, prefix = source.path.partition("/")
    boto3.client("s3").put_object(Bucket=bucket, Key=f"{prefix}/s/c.mp4?versionId=1.mp4", Body=b"c")
    clips = list(list_clips(source, shard))
    assert outcomes(clips) == [("a/__/b.mp4", "outside"), ("c.mp4?versionId=1.mp4", "version"), ("d/e.mp4", None)]
    assert clips[2].video.read() == b"e"


@pytest.mark.store
def test_listing_a_tar_on_s3_fetches_only_its_headers(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Root.open(s3_url)
    shard = write(source, Layout.TAR, {f"{number}.mp4": bytes(1 << 20) for number in range(16)})
    fetched = 0
    call = S3FileSystem._call_s3

    async def counting(fs: S3FileSystem, method: str, *args: Any, **kwargs: Any) -> Any:
        nonlocal fetched
        answer = await call(fs, method, *args, **kwargs)
        fetched += answer["ContentLength"] if method == "get_object" else 0
        return answer

    monkeypatch.setattr(S3FileSystem, "_call_s3", counting)
    assert len(list(list_clips(source, shard))) == 16
    assert 16 * 512 < fetched < 3 << 20


@pytest.mark.fast
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"not a tar at all" * 100, "invalid header"),
        (b"", "empty file"),
        (tar_bytes(("a.mp4", bytes(5000)))[:3000], "unexpected end of data"),
        (tar_bytes(("a.mp4", bytes(512)), ("b.mp4", b""))[:1100], "header at byte 1024 is damaged"),
        (tar_bytes(("a.mp4", b""))[:512] + b"x" * 512, "header at byte 512 is damaged"),
        (tar_bytes(("a.mp4", b"a")) + tar_bytes(("b.mp4", b"b")), "data after the end of the archive at byte 1024"),
        (bytes(512) + tar_bytes(("a.mp4", b"a")), "data after the end of the archive at byte 0"),
        (bytes(200_000), "only zeros"),
    ],
)
def test_an_invalid_or_truncated_tar_is_refused_with_the_reason(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(ShardError, match=rf"'s' is not a valid uncompressed tar \(.*{reason}.*\): write it again"):
        listed(tmp_path, data)


@pytest.mark.fast
@pytest.mark.parametrize(("kind", "size"), [(b"x", 1 << 40), (b"L", 1 << 40), (b"x", -512), (b"0", -5120)])
def test_a_tar_header_with_an_absurd_size_is_refused(tmp_path: Path, kind: bytes, size: int) -> None:
    header = tarfile.TarInfo("a.mp4")
    header.type, header.size = kind, size
    data = tar_bytes(("a.mp4", b"a"))
    with pytest.raises(ShardError, match="'s' is not a valid uncompressed tar"):
        listed(tmp_path, data[:1024] + header.tobuf(tarfile.GNU_FORMAT) + data)


@pytest.mark.fast
def test_an_endless_chain_of_tar_headers_is_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("a.mp4")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 512
    with pytest.raises(ShardError, match="'s' is not a valid uncompressed tar"):
        listed(tmp_path, (header.tobuf() + bytes(512)) * 3000)


@given(st.binary(min_size=1, max_size=40), st.integers(0, 2**32))
@pytest.mark.fast
def test_a_damaged_tar_is_listed_or_refused(data: bytes, seed: int) -> None:
    raw = bytearray(tar_bytes(*FILES.items(), ("n" * 200 + ".mp4", b"long")))
    place = random.Random(seed)
    for byte in data:
        raw[place.randrange(len(raw))] = byte
    source = Root.open("memory://damaged")
    source.write("s.tar", bytes(raw))
    try:
        clips = list(list_clips(source, find_shard(source, "s")))
    except ShardError:
        return
    assert len({clip.key for clip in clips}) == len(clips)


@given(st.lists(st.text(max_size=20).filter(lambda name: "\0" not in name), max_size=5))
@pytest.mark.fast
def test_every_video_of_a_tar_is_listed_under_a_unique_key(stems: list[str]) -> None:
    names = ["plain.mp4", *(f"x{stem}.mp4" for stem in stems)]
    source = Root.open("memory://names")
    source.write("s.tar", tar_bytes(*((name, name.encode()) for name in names)))
    clips = list(list_clips(source, find_shard(source, "s")))
    assert len({clip.key for clip in clips}) == len(clips) == sum(not is_hidden(name) for name in names)
    assert all(normalize(clip.video.read().decode()) == clip.key for clip in clips if not clip.refusal)


COMMON = ["mp4", "m4v", "mov", "mkv", "webm", "avi", "ts", "m2ts", "mts", "m2t", "mpg", "mpeg", "vob", "m2v", "flv"]
RARE = ["wmv", "asf", "ogv", "gif", "apng", "webp", "mxf", "3gp", "3g2", "f4v", "dv", "y4m", "h264", "hevc", "ivf"]
SUFFIXES = [*COMMON, *RARE, "obu", "nut", "MTS", "Mov", "3GP"]


@pytest.mark.fast
@pytest.mark.parametrize("layout", [Layout.FOLDER, Layout.TAR])
def test_files_with_a_suffix_of_ffmpegs_demuxers_are_clips(tmp_path: Path, layout: Layout) -> None:
    source = Root.open(str(tmp_path))
    others = OtherFiles()
    shard = write(source, layout, {f"{number}.{suffix}": b"x" for number, suffix in enumerate(SUFFIXES)})
    assert len(list(list_clips(source, shard, others))) == len(SUFFIXES)
    assert others.count == 0


@pytest.mark.fast
@pytest.mark.parametrize("layout", [Layout.FOLDER, Layout.TAR])
def test_other_files_are_counted_and_the_first_are_listed_by_name(tmp_path: Path, layout: Layout) -> None:
    source = Root.open(str(tmp_path))
    notes = {f"notes/{number:02}.md": b"x" for number in range(30)}
    shard = write(source, layout, {**FILES, **notes, "more.tar.gz": b"x", "LICENSE": b"x", "a.m4a": b"x"})
    others = OtherFiles()
    clips = list(list_clips(source, shard, others))
    assert len(clips) == 4
    assert others.count == 34
    assert others.by_suffix == {".md": 31, ".tar.gz": 1, "LICENSE": 1, ".m4a": 1}
    assert len(others.first_names) == NAMED_FILES


@pytest.mark.fast
@pytest.mark.parametrize("layout", [Layout.FOLDER, Layout.TAR])
def test_a_still_image_with_the_stem_of_a_video_is_not_a_clip(tmp_path: Path, layout: Layout) -> None:
    source = Root.open(str(tmp_path))
    shard = write(source, layout, {"a.mp4": b"x", "a.webp": b"x", "b.webp": b"x"})
    others = OtherFiles()
    assert [clip.key for clip in list_clips(source, shard, others)] == ["a.mp4", "b.webp"]
    assert others.first_names == ["a.webp"]


@pytest.mark.fast
@pytest.mark.parametrize("layout", [Layout.FOLDER, Layout.TAR])
def test_a_shard_without_clips_is_refused_with_its_content(tmp_path: Path, layout: Layout) -> None:
    source = Root.open(str(tmp_path))
    shard = write(source, layout, {"a.tar.gz": b"x", "b.tar.gz": b"x", "c.txt": b"x", ".hidden.mp4": b"x"})
    with pytest.raises(ShardError, match=r"'s' has no clips: 3 other files \(\.tar\.gz, \.txt\)"):
        list(list_clips(source, shard))
