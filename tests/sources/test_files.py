from __future__ import annotations

import os
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from caption_assets.errors import UnreadableClip
from caption_assets.sources.files import find_clips, find_file

pytestmark = pytest.mark.fast

CONTENT = b"not really a video"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two clips, one of them in a folder of its own, a sidecar file and other files."""
    folder = tmp_path / "clips"
    (folder / "inner").mkdir(parents=True)
    for name in ("b.mp4", "inner/a.mkv", "b.json", "notes.md", ".hidden.mp4"):
        (folder / name).write_bytes(CONTENT)
    return folder


def refusal(path: str) -> tuple[str, str]:
    """Kind and message of the refusal of a path."""
    [clip] = find_clips([path])
    assert clip.refusal is not None
    return clip.refusal.kind, str(clip.refusal)


def test_files_have_the_given_order_and_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    clips = list(find_clips(["inner/a.mkv", Path("b.mp4"), "./b.mp4"]))
    assert [clip.key for clip in clips] == ["inner/a.mkv", "b.mp4", "./b.mp4"]
    assert [clip.video.read() for clip in clips] == [CONTENT] * 3


def test_folder_is_read_like_a_shard(folder: Path) -> None:
    clips = list(find_clips([f"{folder}/"]))
    assert [clip.key for clip in clips] == [f"{folder}/b.mp4", f"{folder}/inner/a.mkv"]
    assert clips[0].json_file is not None
    assert [clip.video.read() for clip in clips] == [CONTENT] * 2


def test_tar_is_read_like_a_shard(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(folder / "b.mp4", "b.mp4")
    [clip] = find_clips([tmp_path / "shard.tar"])
    assert (clip.key, clip.video.read()) == (f"{tmp_path}/shard.tar/b.mp4", CONTENT)


def test_list_is_read_like_a_shard(folder: Path) -> None:
    (folder / "list.jsonl").write_text('{"uri": "b.mp4"}\n')
    [clip] = find_clips([folder / "list.jsonl"])
    assert (clip.key, clip.video.read()) == (f"{folder}/list.jsonl/b.mp4", CONTENT)


def test_named_link_is_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link.mp4").symlink_to(folder / "b.mp4")
    [clip] = find_clips([tmp_path / "link.mp4"])
    assert (clip.refusal, clip.video.read()) == (None, CONTENT)


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        ("/nowhere/a.mp4", "missing", "does not exist"),
        ("", "missing", "not the name of a file"),
        ("/dev/null", "not_a_file", "not a regular file"),
        ("ftp://host/a.mp4", "scheme", "https://"),
        ("https://user:word@host/a.mp4", "credentials", "contains credentials"),
        ("https://host/a.mp4?X-Amz-Signature=abc", "credentials", "contains credentials"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(path: str, kind: str, message: str) -> None:
    found = refusal(path)
    assert found[0] == kind
    assert message in found[1]
    with pytest.raises(UnreadableClip, match=message):
        find_file(path)


def test_credentials_are_not_shown() -> None:
    [clip] = find_clips(["https://user:word@host/a.mp4"])
    assert "word" not in f"{clip.key} {clip.refusal}"
    with pytest.raises(UnreadableClip) as error:
        find_file("https://user:word@host/a.mp4")
    assert "word" not in str(error.value)


def test_folder_without_videos_is_refused(tmp_path: Path) -> None:
    assert "has no clips: it is empty" in refusal(str(tmp_path))[1]
    (tmp_path / "notes.md").touch()
    assert "1 other files (.md)" in refusal(str(tmp_path))[1]


def test_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UnreadableClip, match=f"{tmp_path} is a folder"):
        find_file(tmp_path)


def test_name_that_is_not_utf8_is_shown_escaped(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.mp4")
    Path(path).write_bytes(CONTENT)
    [clip] = find_clips([path])
    assert (clip.key, clip.video.read()) == (f"{tmp_path}/\\udcff.mp4", CONTENT)


def test_path_that_is_not_text_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"b'a\.mp4'"):
        list(find_clips([b"a.mp4"]))  # type: ignore[list-item]


class RangeHandler(SimpleHTTPRequestHandler):
    """A handler of files that supports ranges."""

    def do_GET(self) -> None:
        content = Path(self.translate_path(self.path)).read_bytes()
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last or len(content)) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(Path(self.translate_path(self.path)).stat().st_size))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class WholeHandler(SimpleHTTPRequestHandler):
    """A handler of files that ignores ranges."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(params=[RangeHandler, WholeHandler])
def server(request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[str, bool]]:
    """The URL of a server with the folder's files, and whether it supports ranges."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(request.param, directory=str(folder))) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}", request.param is RangeHandler
        http.shutdown()


def test_url_is_read_by_ranges(server: tuple[str, bool]) -> None:
    url, has_ranges = server
    if has_ranges:
        [clip] = find_clips([f"{url}/b.mp4"])
        assert (clip.key, clip.video.read(), clip.video.read_range(4, 10)) == (f"{url}/b.mp4", CONTENT, CONTENT[4:10])
    else:
        assert refusal(f"{url}/b.mp4") == (
            "no_ranges",
            "the server does not support range requests: download the file first",
        )
