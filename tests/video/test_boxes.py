from pathlib import Path

import pytest

from caption_assets.store.span import Span
from caption_assets.store.span_file import SpanFile
from caption_assets.video.boxes import MovieBox, read_movie_box
from caption_assets.video.display import UPRIGHT
from caption_assets.video.track import Track
from tests.videos import counting_video, noise_film

pytestmark = pytest.mark.fast


def movie_box_of(folder: Path, data: bytes) -> MovieBox | None:
    (folder / "file").write_bytes(data)
    return read_movie_box(SpanFile(Span(f"file://{folder}/file", 0, len(data))))


@pytest.mark.parametrize("movflags", ["", "faststart"])
def test_the_index_is_found_at_either_end(tmp_path: Path, movflags: str) -> None:
    assert movie_box_of(tmp_path, noise_film(frames=5, movflags=movflags)) == MovieBox(
        fragmented=False, tracks={1: Track(orientation=UPRIGHT)}
    )


def test_a_fragmented_file_is_told_from_a_plain_one(tmp_path: Path) -> None:
    index = movie_box_of(tmp_path, noise_film(frames=5, movflags="frag_keyframe+empty_moov"))
    assert index is not None
    assert index.fragmented


def test_a_box_may_have_a_long_size_or_reach_to_the_end(tmp_path: Path) -> None:
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
def test_what_has_no_index_has_none(tmp_path: Path, data: bytes) -> None:
    assert movie_box_of(tmp_path, data) is None


def test_an_index_that_is_cut_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    data = noise_film(frames=5, movflags="faststart")
    at = data.index(b"moov")
    for end in range(at + 4, at + 400, 7):
        assert movie_box_of(tmp_path, data[:end]) is not None
