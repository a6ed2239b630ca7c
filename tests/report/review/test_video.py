"""Tests of clips over HTTP, by ranges: files and members of a tar, local and in S3."""

from __future__ import annotations

import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from caption_assets.report.review.app import review_app
from caption_assets.report.review.video import content_type
from caption_assets.store.content_tag import ContentTag, etag_tag
from caption_assets.store.root import Root
from caption_assets.store.span import Span
from caption_assets.store.tables import ManifestRow
from tests.report.review.desks import TOKEN, desk_of
from tests.report.windows import SHARD, captioned, publish, window
from tests.videos import moving_video

VIDEO = moving_video(10)
OFFSET = 512
"""Offset of the data of a tar's first member."""


def tar_of(data: bytes) -> bytes:
    output = BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        member = tarfile.TarInfo("in-tar.mp4")
        member.size = len(data)
        tar.addfile(member, BytesIO(data))
    return output.getvalue()


def client_of(root: Root, source: Root) -> tuple[TestClient, dict[str, str]]:
    """A client of a review of a clip in a folder and one in a tar, and their paths."""
    source.write(f"{SHARD}/file.mp4", VIDEO)
    source.write(f"{SHARD}.tar", tar_of(VIDEO))
    etag = source.fs.info(source.full(f"{SHARD}/file.mp4")).get("ETag")
    tag = ContentTag(VIDEO).hexdigest()
    clips = {
        "file.mp4": clip("file.mp4", etag_tag(etag) if etag else tag, uri=f"{SHARD}/file.mp4"),
        "in-tar.mp4": clip("in-tar.mp4", tag, uri=f"{SHARD}.tar", offset=OFFSET),
    }
    publish(root, list(clips.values()), [captioned(one, "A texture.") for one in clips.values()])
    client = TestClient(review_app(desk_of(root), source, TOKEN), base_url="http://127.0.0.1:3002")
    client.get(f"/?token={TOKEN}")
    return client, {name: f"/api/video/{SHARD}/{one.window_id}" for name, one in clips.items()}


def clip(name: str, tag: str, **place: Any) -> ManifestRow:
    return window(name, content_tag=tag, bytes=len(VIDEO), **place)


@pytest.fixture
def local(tmp_path: Path) -> tuple[TestClient, dict[str, str]]:
    return client_of(Root.open(str(tmp_path / "root")), Root.open(str(tmp_path / "source")))


@pytest.mark.fast
@pytest.mark.parametrize("name", ["file.mp4", "in-tar.mp4"])
def test_clip_is_sent_whole_and_by_ranges(local: tuple[TestClient, dict[str, str]], name: str) -> None:
    client, paths = local
    check_ranges(client, paths[name])


@pytest.mark.store
def test_clip_in_s3_is_sent_by_ranges_that_read_no_more(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client, paths = client_of(Root.open(f"{s3_url}/root"), Root.open(f"{s3_url}/source"))
    for path in paths.values():
        check_ranges(client, path)
    read: list[int] = []
    original = Span.read_range

    def counted(self: Span, start: int, end: int) -> bytes:
        data = original(self, start, end)
        read.append(len(data))
        return data

    monkeypatch.setattr(Span, "read_range", counted)
    assert client.get(paths["in-tar.mp4"], headers={"Range": "bytes=100-199"}).content == VIDEO[100:200]
    assert sum(read) <= 100 + 16  # and the signature of the container


def check_ranges(client: TestClient, path: str) -> None:
    size = len(VIDEO)
    whole = client.get(path)
    assert (whole.status_code, whole.content) == (200, VIDEO)
    assert whole.headers["content-type"] == "video/mp4"
    assert whole.headers["accept-ranges"] == "bytes"
    for header, part, first in (
        ("bytes=0-0", VIDEO[:1], 0),
        ("bytes=10-19", VIDEO[10:20], 10),
        (f"bytes={size - 5}-", VIDEO[-5:], size - 5),
        ("bytes=-7", VIDEO[-7:], size - 7),
        (f"bytes=5-{size * 2}", VIDEO[5:], 5),
        (f"bytes=-{size * 2}", VIDEO, 0),
    ):
        answer = client.get(path, headers={"Range": header})
        assert (answer.status_code, answer.content) == (206, part)
        assert answer.headers["content-range"] == f"bytes {first}-{first + len(part) - 1}/{size}"
        assert answer.headers["content-length"] == str(len(part))
    head = client.head(path, headers={"Range": "bytes=10-19"})
    assert (head.status_code, head.content, head.headers["content-length"]) == (206, b"", "10")


@pytest.mark.fast
@pytest.mark.parametrize(
    "header", ["bytes=5-2", "bytes=0-1,4-5", "bytes=a-b", "bytes=-", "frames=0-1", f"bytes={'9' * 5000}-"]
)
def test_range_that_is_none_is_ignored(local: tuple[TestClient, dict[str, str]], header: str) -> None:
    client, paths = local
    answer = client.get(paths["file.mp4"], headers={"Range": header})
    assert (answer.status_code, len(answer.content)) == (200, len(VIDEO))


@pytest.mark.fast
@pytest.mark.parametrize("header", [f"bytes={len(VIDEO)}-", "bytes=-0"])
def test_range_outside_the_clip_is_refused(local: tuple[TestClient, dict[str, str]], header: str) -> None:
    client, paths = local
    answer = client.get(paths["file.mp4"], headers={"Range": header})
    assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{len(VIDEO)}")


@pytest.mark.fast
def test_range_of_another_version_is_the_whole_clip(local: tuple[TestClient, dict[str, str]]) -> None:
    client, paths = local
    tag = client.get(paths["file.mp4"]).headers["etag"]
    same = client.get(paths["file.mp4"], headers={"Range": "bytes=0-9", "If-Range": tag})
    other = client.get(paths["file.mp4"], headers={"Range": "bytes=0-9", "If-Range": '"other"'})
    assert (same.status_code, other.status_code) == (206, 200)
    assert client.get(paths["file.mp4"], headers={"If-None-Match": tag}).status_code == 304


@pytest.mark.fast
def test_missing_and_replaced_clips_are_named(local: tuple[TestClient, dict[str, str]], tmp_path: Path) -> None:
    client, paths = local
    file = tmp_path / "source" / SHARD / "file.mp4"
    file.write_bytes(VIDEO[:-1])
    answer = client.get(paths["file.mp4"])
    assert (answer.status_code, "has changed" in answer.json()["error"]) == (409, True)
    file.unlink()
    answer = client.get(paths["file.mp4"])
    assert (answer.status_code, "file.mp4" in answer.json()["error"]) == (404, True)


@pytest.mark.fast
@pytest.mark.parametrize(
    "path",
    [
        f"/api/video/{SHARD}/x",
        "/api/video/../etc",
        f"/api/video/..%2f{SHARD}/x",
        f"/api/video/{SHARD}/..%2f..%2ffile.mp4",
        f"/api/preview/{SHARD}/..%2fx",
        f"/api/video/{SHARD}/",
    ],
)
def test_other_paths_are_not_found(local: tuple[TestClient, dict[str, str]], path: str) -> None:
    client, _ = local
    assert client.get(path).status_code == 404


@pytest.mark.fast
@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (VIDEO[:16], "video/mp4"),
        (b"\x1aE\xdf\xa3", "video/webm"),
        (b"OggS", "video/ogg"),
        (b"RIFF\0\0\0\0AVI LIST", "video/x-msvideo"),
        (b"GIF89a", "image/gif"),
        (b"G" + bytes(15), "video/mp2t"),
        (b"<html>", "application/octet-stream"),
        (b"", "application/octet-stream"),
    ],
)
def test_content_type_is_that_of_the_container(head: bytes, kind: str) -> None:
    assert content_type(head) == kind
