import tarfile
from pathlib import Path

import psutil
import pytest

from caption_assets.sources.manifest import CLIPS_PER_WORKER, probe_clips, span_of
from caption_assets.sources.shard import Layout, Shard, ShardError, find_shard
from caption_assets.store.content_tag import ContentTag, etag_tag
from caption_assets.store.root import Root
from caption_assets.store.tables import ManifestRow, Status
from caption_assets.video.window import Windowing
from caption_assets.workers.sandbox import Sandbox
from tests.conftest import SANDBOX
from tests.videos import counting_video, noise_video

DEFAULT = Windowing()


def manifest(folder: Path, files: dict[str, bytes], windowing: Windowing = DEFAULT) -> list[ManifestRow]:
    (folder / "s").mkdir()
    for name, data in files.items():
        (folder / "s" / name).write_bytes(data)
    source = Root.open(str(folder))
    rows = [row for clip in probe_clips(SANDBOX, source, find_shard(source, "s"), windowing) for row in clip.rows]
    assert all(span_of(source, row).read() == files[row.clip_key] for row in rows)
    return rows


def test_a_manifest_has_one_row_per_window_in_order_of_key(tmp_path: Path) -> None:
    rows = manifest(tmp_path, {"b.mp4": counting_video(40), "a.mp4": counting_video(20)}, Windowing(16, 8))
    assert [(row.clip_key, row.window_index, row.start_frame, row.end_frame) for row in rows] == [
        ("a.mp4", 0, 0, 20),
        ("b.mp4", 0, 0, 16),
        ("b.mp4", 1, 16, 32),
        ("b.mp4", 2, 32, 40),
    ]
    assert {row.status for row in rows} == {Status.OK}


def test_an_unreadable_clip_has_one_row_with_the_reason(tmp_path: Path) -> None:
    rows = manifest(tmp_path, {"bad.mp4": b"<html>", "good.mp4": counting_video(20)})
    assert [(row.clip_key, row.window_index, row.status) for row in rows] == [
        ("bad.mp4", None, Status.FAILED),
        ("good.mp4", 0, Status.OK),
    ]
    assert rows[0].error_kind == "text"
    assert rows[0].error


def test_a_clip_of_three_frames_is_too_short(tmp_path: Path) -> None:
    [row] = manifest(tmp_path, {"short.mp4": counting_video(3)})
    assert (row.error_kind, row.window_index) == ("too_short", None)


def test_window_ids_depend_on_key_and_window(tmp_path: Path) -> None:
    data = counting_video(40)
    rows = manifest(tmp_path, {"a.mp4": data, "b.mp4": data}, Windowing(20, 8))
    assert len({row.window_id for row in rows}) == 4
    assert len({row.content_tag for row in rows}) == 1


def test_a_row_describes_its_clip(tmp_path: Path) -> None:
    [row] = manifest(tmp_path, {"a.mp4": noise_video(frames=20, size=(160, 120), rotation=90)})
    assert (row.codec, row.pixel_format, row.bit_depth, row.interlaced, row.has_audio) == (
        "h264",
        "yuv420p",
        8,
        False,
        True,
    )
    assert (row.width, row.height, row.rotation, row.variable_fps) == (120, 160, 90, False)


def test_a_row_has_the_location_and_tag_of_its_clips_bytes(tmp_path: Path) -> None:
    data = counting_video(20)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a b.mp4").write_bytes(data)
    with tarfile.open(tmp_path / "tar.tar", "w") as archive:
        archive.add(tmp_path / "folder" / "a b.mp4", "a.mp4")
    source = Root.open(str(tmp_path))
    for shard, uri in (("folder", "folder/a b.mp4"), ("tar", "tar.tar")):
        [clip] = probe_clips(SANDBOX, source, find_shard(source, shard), DEFAULT)
        [row] = clip.rows
        assert row.uri == uri
        assert source.read(row.uri)[row.offset : row.offset + row.bytes] == data
        assert row.content_tag == ContentTag(data).hexdigest()


@pytest.mark.store
def test_clips_on_s3_are_tagged_by_their_etag(s3_url: str) -> None:
    source = Root.open(s3_url)
    data = noise_video(size=(320, 240), frames=80)
    source.write("s/a.mp4", data)
    with Sandbox(workers=1) as sandbox:  # the session's sandbox was started without this server's settings
        [clip] = probe_clips(sandbox, source, find_shard(source, "s"), DEFAULT)
    [row] = clip.rows
    etag = source.fs.info(source.full("s/a.mp4"))["ETag"]
    assert (row.status, row.uri, row.content_tag) == (Status.OK, "s/a.mp4", etag_tag(etag))
    assert clip.bytes_read < clip.size / 2


def test_clips_are_yielded_in_the_order_of_the_listing(tmp_path: Path) -> None:
    short, long = counting_video(5), noise_video(container="matroska", frames=40)
    rows = manifest(tmp_path, {f"{index:03}.mp4": long if index % 7 == 0 else short for index in range(150)})
    assert [row.clip_key for row in rows] == [f"{index:03}.mp4" for index in range(150)]


def test_a_clip_that_is_deleted_after_the_listing_has_a_failed_row(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    names = [f"{index:03}.mp4" for index in range(CLIPS_PER_WORKER * SANDBOX.workers + 20)]
    for name in names:
        (tmp_path / "s" / name).write_bytes(counting_video(5))
    source = Root.open(str(tmp_path))
    clips = probe_clips(SANDBOX, source, find_shard(source, "s"), DEFAULT)
    first = next(clips)
    (tmp_path / "s" / names[-1]).unlink()  # already listed, but not opened yet
    *others, last = clips
    assert {clip.rows[0].status for clip in (first, *others)} == {Status.OK}
    [row] = last.rows
    assert (row.clip_key, row.status, row.error_kind) == (names[-1], Status.FAILED, "unreadable")
    assert len(others) == len(names) - 2


def test_a_killed_worker_fails_at_most_the_clip_that_it_reads(tmp_path: Path) -> None:
    long = noise_video(container="matroska", frames=400)
    (tmp_path / "s").mkdir()
    for index in range(60):
        (tmp_path / "s" / f"{index:02}.mkv").write_bytes(long)
    source = Root.open(str(tmp_path))
    before = set(psutil.Process().children())
    with Sandbox(workers=1) as sandbox:
        clips = probe_clips(sandbox, source, find_shard(source, "s"), DEFAULT)
        rows = [next(clips).rows[0]]
        [worker] = set(psutil.Process().children()) - before
        worker.kill()
        rows += [clip.rows[0] for clip in clips]
    assert [row.clip_key for row in rows] == [f"{index:02}.mkv" for index in range(60)]
    failed = [row.error_kind for row in rows if row.status is Status.FAILED]
    assert failed in ([], ["decoder_died"])  # none if the worker was idle


def test_a_shard_that_cannot_be_listed_is_reported(tmp_path: Path) -> None:
    (tmp_path / "s.tar").mkdir()
    source = Root.open(str(tmp_path))
    with pytest.raises(ShardError, match="cannot read shard 's' in "):
        list(probe_clips(SANDBOX, source, Shard("s", Layout.TAR, "s.tar"), DEFAULT))


def test_the_prompt_of_a_clip_is_in_its_rows(tmp_path: Path) -> None:
    rows = manifest(tmp_path, {"a.mp4": counting_video(20), "a.json": b'{"prompt": "Count the frames.", "other": 1}'})
    assert [row.prompt for row in rows] == ["Count the frames."]


@pytest.mark.parametrize("json_file", [b"{", b"[1]", b'{"prompt": 7}', b'{"prompt": " "}', b"\xff\xfe"])
def test_an_invalid_sidecar_file_fails_its_clip(tmp_path: Path, json_file: bytes) -> None:
    [row] = manifest(tmp_path, {"a.mp4": counting_video(20), "a.json": json_file})
    assert (row.status, row.error_kind) == (Status.FAILED, "side_file")
    assert "the clip's JSON file" in (row.error or "")


def test_a_refused_clip_has_a_failed_row_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(counting_video(20))
    (tmp_path / "s.jsonl").write_text('{"uri": "../b.mp4"}\n{"uri": "a.mp4", "prompt": "Count."}\n{"uri": "a.mp4"}\n')
    source = Root.open(str(tmp_path))
    rows = [row for clip in probe_clips(SANDBOX, source, find_shard(source, "s"), DEFAULT) for row in clip.rows]
    assert [(row.clip_key, row.error_kind, row.prompt) for row in rows] == [
        ("__/b.mp4", "outside", None),
        ("a.mp4", None, "Count."),
        ("a.mp4#2", "duplicate", None),
    ]
