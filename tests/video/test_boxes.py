from pathlib import Path

import pytest

from caption_assets.store.span import Span
from caption_assets.store.span_file import SpanFile
from caption_assets.video.boxes import MovieBox, read_movie_box
from caption_assets.video.display import UPRIGHT
from caption_assets.video.track import Track
from tests.videos import counting_video, noise_video

pytestmark = pytest.mark.fast


def movie_box_of(folder: Path, data: bytes) -> MovieBox | None:
    (folder / "file").write_bytes(data)
    return read_movie_box(SpanFile(Span(f"file://{folder}/file", 0, len(data))))


@pytest.mark.parametrize("movflags", ["", "faststart"])
def test_movie_box_is_found_at_either_end_of_the_file(tmp_path: Path, movflags: str) -> None:
    assert movie_box_of(tmp_path, noise_video(frames=5, movflags=movflags)) == MovieBox(
        fragmented=False, tracks={1: Track(orientation=UPRIGHT)}
    )


def test_movie_box_of_a_fragmented_file_is_fragmented(tmp_path: Path) -> None:
    box = movie_box_of(tmp_path, noise_video(frames=5, movflags="frag_keyframe+empty_moov"))
    assert box is not None
    assert box.fragmented


def test_movie_box_is_found_behind_a_64_bit_size_and_with_a_size_up_to_the_end(tmp_path: Path) -> None:
    data = counting_video(5)
    at = data.index(b"moov") - 4
    long = data[:at] + (1).to_bytes(4) + b"free" + (16 + 40).to_bytes(8) + bytes(40)
    expected = movie_box_of(tmp_path, data)
    assert expected is not None
    assert movie_box_of(tmp_path, long + data[at:]) == expected
    assert movie_box_of(tmp_path, data[:at] + (0).to_bytes(4) + data[at + 4 :]) == expected


@pytest.mark.parametrize(
    "data",
    [b"", b"ftyp", b"<html>404</html>" * 100, bytes(1000), (8).to_bytes(4) + b"free" * 1000, b"\xff" * 1000],
    ids=["empty", "short", "html", "zeros", "small boxes", "ones"],
)
def test_data_without_a_movie_box_has_none(tmp_path: Path, data: bytes) -> None:
    assert movie_box_of(tmp_path, data) is None


def test_truncated_movie_box_is_read_up_to_its_end(tmp_path: Path) -> None:
    data = noise_video(frames=5, movflags="faststart")
    at = data.index(b"moov")
    for end in range(at + 4, at + 400, 7):
        assert movie_box_of(tmp_path, data[:end]) is not None
