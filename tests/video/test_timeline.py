from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from caption_assets.store.span import Span
from caption_assets.store.span_file import SpanFile
from caption_assets.video.ebml import is_complete
from caption_assets.video.probe import probe, probe_by_ranges
from tests.video.full_decode import SIZE, full_decode, to_gray
from tests.videos import (
    MPEG,
    SHORT_GROUPS,
    decode,
    film_of_few_stamps,
    film_whose_stamps_begin_anew,
    gray,
    level,
    moving_video,
    video,
)

pytestmark = pytest.mark.fast

CASES = Path(__file__).parent / "cases"


@dataclass(frozen=True, slots=True)
class Right:
    """What a player shows of a case."""

    frames: int
    fps: float
    seconds: float


RIGHT = {
    "paff_frame.ts": Right(30, 25, 1.2),
    "paff_field.ts": Right(30, 25, 1.2),
    "theora_dup.ogv": Right(97, 25, 3.88),
    "vp8_altref.webm": Right(100, 25, 4),
    "vp8_altref_ms.webm": Right(540, 30, 18),
    "drone_sei.mp4": Right(100, 25, 4.027),
    "hevc_splice.mp4": Right(100, 25, 4),
    "ts_j1h.ts": Right(200, 25, 8),
    "gap.flv": Right(100, 25, 4),
    "allkey_hevc.mkv": Right(100, 25, 4),
    "hevc_nostss.mp4": Right(100, 25, 4),
    "mpeg4_nostss.mp4": Right(100, 25, 4),
    "zerodelta.mp4": Right(100, 25, 4),
    "packed.avi": Right(150, 25, 6),
    "hold_last.mp4": Right(25, 25, 59.96),
    "hold_last.mkv": Right(25, 25, 59.96),
    "hold_last.gif": Right(10, 10, 5.9),
}
OF_ANOTHER_CLOCK = {"gap.flv", "zerodelta.mp4"}
"""Cases whose times FFmpeg's command line leaves wrong: pictures are compared by their number."""


@pytest.mark.parametrize("name", RIGHT)
def test_a_case_has_the_frames_and_the_length_that_a_player_shows(name: str) -> None:
    path = CASES / name
    found = probe(path.read_bytes())
    right = RIGHT[name]
    assert (found.frames, found.variable_fps) == (right.frames, False)
    assert found.fps == pytest.approx(right.fps, rel=1e-3)
    assert found.seconds == pytest.approx(right.seconds, abs=1e-3)
    assert probe_by_ranges(SpanFile(Span(f"file://{path}", 0, path.stat().st_size))) == found


@pytest.mark.parametrize("name", RIGHT)
def test_a_case_shows_the_pictures_of_a_full_decode(name: str) -> None:
    data = (CASES / name).read_bytes()
    times = probe(data).times
    frames = decode(data, 0, len(times), min(len(times) // 2 * 2, 50), SIZE)
    reference = full_decode(CASES / name)
    shown = [index if name in OF_ANOTHER_CLOCK else reference.shown_at(times[index]) for index in frames.indices]
    pictures = to_gray(frames.pixels)
    assert all(number in reference.nearest(picture) for picture, number in zip(pictures, shown, strict=True))


def test_a_picture_that_cannot_be_decoded_is_replaced_by_the_one_before() -> None:
    data = (CASES / "hevc_splice.mp4").read_bytes()
    frames = decode(data, 40, 60, 20, SIZE)
    assert 0 < frames.replaced < 5
    assert len(set(frames.indices)) == 20 - frames.replaced
    assert list(frames.indices) == sorted(frames.indices)


@pytest.mark.parametrize("container", ["mpegts", "mpeg"])
def test_recordings_put_one_behind_the_other_are_one_clip(container: str) -> None:
    found = probe(film_whose_stamps_begin_anew(container))
    assert found.frames == 96
    assert found.fps == pytest.approx(25)
    assert not found.variable_fps


def test_a_frame_without_a_timestamp_is_shown_one_interval_after_the_one_before() -> None:
    found = probe(film_of_few_stamps())
    assert found.times == pytest.approx([index / 25 for index in range(48)], abs=0.001)


X264 = {"x264-params": SHORT_GROUPS, "crf": "10"}
UNORDERED = {
    "h264 in avi": {"options": X264, "container": "avi"},
    "h264 in asf": {"options": X264, "container": "asf"},
    "h264 in a program stream": {"options": X264, "container": "mpeg"},
    "mpeg2 in asf": {"encoder": "mpeg2video", "options": MPEG, "container": "asf"},
    "mpeg2 in a vob of a low rate": {
        "encoder": "mpeg2video",
        "options": {**MPEG, "b": "60000"},
        "container": "vob",
    },
    "mpeg1 of a low rate": {"encoder": "mpeg1video", "options": {**MPEG, "b": "60000"}, "container": "mpeg"},
}
"""Files with B-frames whose container does not state when they are shown."""


@pytest.mark.parametrize("name", UNORDERED)
def test_pictures_without_times_take_the_order_in_which_the_decoder_shows_them(name: str) -> None:
    data = video((gray(level(index), (64, 48)) for index in range(60)), **UNORDERED[name])  # type: ignore[arg-type]
    found = probe(data)
    assert found.times == pytest.approx([index / 25 for index in range(60)], abs=0.001)
    frames = decode(data, 0, 60, 60, (48, 64))
    assert frames.indices == tuple(range(60))
    means = [float(picture.mean()) for picture in frames.pixels]
    assert means == pytest.approx([level(index) for index in range(60)], abs=3)


def matroska() -> bytes:
    return moving_video(48, container="matroska", options={"x264-params": SHORT_GROUPS})


def test_a_matroska_file_that_is_cut_off_is_not_as_long_as_it_states() -> None:
    data = matroska()
    assert probe(data).seconds == pytest.approx(1.92)
    cut = data[: len(data) // 2]
    assert not is_complete(cut[:4096], len(cut))
    assert is_complete(data[:4096], len(data))
    assert probe(cut).seconds < 1.5
