from pathlib import Path

import pytest

from caption_assets.clips.manifest import manifest_rows
from caption_assets.clips.shard import find_shard
from caption_assets.clips.window import Windowing
from caption_assets.store.root import Root
from caption_assets.store.tables import ManifestRow, Status
from tests.videos import counting_video

pytestmark = pytest.mark.fast

DEFAULT = Windowing()


def manifest(folder: Path, files: dict[str, bytes], windowing: Windowing = DEFAULT) -> list[ManifestRow]:
    (folder / "s").mkdir()
    for name, data in files.items():
        (folder / "s" / name).write_bytes(data)
    source = Root.open(str(folder))
    return list(manifest_rows(source, find_shard(source, "s"), windowing))


def test_one_row_for_each_window_in_order_of_key(tmp_path: Path) -> None:
    rows = manifest(tmp_path, {"b.mp4": counting_video(40), "a.mp4": counting_video(20)}, Windowing(16, 8))
    assert [(row.clip_key, row.window_index, row.start_frame, row.end_frame) for row in rows] == [
        ("a.mp4", 0, 0, 20),
        ("b.mp4", 0, 0, 16),
        ("b.mp4", 1, 16, 32),
        ("b.mp4", 2, 32, 40),
    ]
    assert {row.status for row in rows} == {Status.OK}


def test_an_unreadable_clip_has_one_row_that_says_why(tmp_path: Path) -> None:
    rows = manifest(tmp_path, {"bad.mp4": b"<html>", "good.mp4": counting_video(20)})
    assert [(row.clip_key, row.window_index, row.status) for row in rows] == [
        ("bad.mp4", None, Status.FAILED),
        ("good.mp4", 0, Status.OK),
    ]
    assert rows[0].error_kind == "not_a_video"
    assert rows[0].error


def test_a_clip_of_three_frames_is_too_short(tmp_path: Path) -> None:
    [row] = manifest(tmp_path, {"short.mp4": counting_video(3)})
    assert (row.error_kind, row.window_index) == ("too_short", None)


def test_ids_follow_key_window_and_content(tmp_path: Path) -> None:
    data = counting_video(40)
    rows = manifest(tmp_path, {"a.mp4": data, "b.mp4": data}, Windowing(20, 8))
    assert len({row.window_id for row in rows}) == 4
    assert len({row.content_tag for row in rows}) == 1


def test_a_clips_own_prompt_stands_in_its_rows(tmp_path: Path) -> None:
    rows = manifest(tmp_path, {"a.mp4": counting_video(20), "a.json": b'{"prompt": "Count the frames.", "other": 1}'})
    assert [row.prompt for row in rows] == ["Count the frames."]


@pytest.mark.parametrize("side", [b"{", b"[1]", b'{"prompt": 7}', b'{"prompt": " "}', b"\xff\xfe"])
def test_a_side_file_that_cannot_be_used_is_told_on_its_clips_row(tmp_path: Path, side: bytes) -> None:
    [row] = manifest(tmp_path, {"a.mp4": counting_video(20), "a.json": side})
    assert (row.status, row.error_kind) == (Status.FAILED, "side_file")
    assert "JSON file beside the clip" in (row.error or "")


def test_a_clip_that_is_refused_has_a_row_that_says_why_and_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(counting_video(20))
    (tmp_path / "s.jsonl").write_text('{"uri": "../b.mp4"}\n{"uri": "a.mp4", "prompt": "Count."}\n{"uri": "a.mp4"}\n')
    source = Root.open(str(tmp_path))
    rows = list(manifest_rows(source, find_shard(source, "s"), DEFAULT))
    assert [(row.clip_key, row.error_kind, row.prompt) for row in rows] == [
        ("__/b.mp4", "outside", None),
        ("a.mp4", None, "Count."),
        ("a.mp4#2", "duplicate", None),
    ]
