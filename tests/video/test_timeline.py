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
    gray,
    level,
    moving_video,
    video,
    video_with_missing_timestamps,
    video_with_restarting_timestamps,
)

pytestmark = pytest.mark.fast

CASES = Path(__file__).parent / "cases"


@dataclass(frozen=True, slots=True)
class Expected:
    """The frames and length of a test file in a player."""

    frames: int
    fps: float
    seconds: float


EXPECTED = {
    "paff_frame.ts": Expected(30, 25, 1.2),
    "paff_field.ts": Expected(30, 25, 1.2),
    "theora_dup.ogv": Expected(97, 25, 3.88),
    "vp8_altref.webm": Expected(100, 25, 4),
    "vp8_altref_ms.webm": Expected(540, 30, 18),
    "drone_sei.mp4": Expected(100, 25, 4.027),
    "hevc_splice.mp4": Expected(100, 25, 4),
    "ts_j1h.ts": Expected(200, 25, 8),
    "gap.flv": Expected(100, 25, 4),
    "allkey_hevc.mkv": Expected(100, 25, 4),
    "hevc_nostss.mp4": Expected(100, 25, 4),
    "mpeg4_nostss.mp4": Expected(100, 25, 4),
    "zerodelta.mp4": Expected(100, 25, 4),
    "packed.avi": Expected(150, 25, 6),
    "hold_last.mp4": Expected(25, 25, 59.96),
    "hold_last.mkv": Expected(25, 25, 59.96),
    "hold_last.gif": Expected(10, 10, 5.9),
}
WITH_WRONG_REFERENCE_TIMES = {"gap.flv", "zerodelta.mp4"}
"""Test files whose times are wrong in FFmpeg's command line: their pictures are compared by number."""


@pytest.mark.parametrize("name", EXPECTED)
def test_frames_and_length_are_those_of_a_player(name: str) -> None:
    path = CASES / name
    found = probe(path.read_bytes())
    expected = EXPECTED[name]
    assert (found.frames, found.variable_fps) == (expected.frames, False)
    assert found.fps == pytest.approx(expected.fps, rel=1e-3)
    assert found.seconds == pytest.approx(expected.seconds, abs=1e-3)
    assert probe_by_ranges(SpanFile(Span(f"file://{path}", 0, path.stat().st_size))) == found


@pytest.mark.parametrize("name", EXPECTED)
def test_pictures_equal_a_full_decode(name: str) -> None:
    data = (CASES / name).read_bytes()
    times = probe(data).times
    frames = decode(data, 0, len(times), min(len(times) // 2 * 2, 50), SIZE)
    reference = full_decode(CASES / name)
    by_number = name in WITH_WRONG_REFERENCE_TIMES
    shown = [index if by_number else reference.shown_at(times[index]) for index in frames.indices]
    pictures = to_gray(frames.pixels)
    assert all(number in reference.nearest(picture) for picture, number in zip(pictures, shown, strict=True))


def test_undecodable_picture_is_replaced_by_the_one_before() -> None:
    data = (CASES / "hevc_splice.mp4").read_bytes()
    frames = decode(data, 40, 60, 20, SIZE)
    assert 0 < frames.replaced < 5
    assert len(set(frames.indices)) == 20 - frames.replaced
    assert list(frames.indices) == sorted(frames.indices)


@pytest.mark.parametrize("container", ["mpegts", "mpeg"])
def test_concatenated_recordings_are_one_clip(container: str) -> None:
    found = probe(video_with_restarting_timestamps(container))
    assert found.frames == 96
    assert found.fps == pytest.approx(25)
    assert not found.variable_fps


def test_frame_without_a_timestamp_is_shown_one_interval_after_the_one_before() -> None:
    found = probe(video_with_missing_timestamps())
    assert found.times == pytest.approx([index / 25 for index in range(48)], abs=0.001)


X264 = {"x264-params": SHORT_GROUPS, "crf": "10"}
WITHOUT_PTS = {
    "h264 in avi": {"options": X264, "container": "avi"},
    "h264 in asf": {"options": X264, "container": "asf"},
    "h264 in a program stream": {"options": X264, "container": "mpeg"},
    "mpeg2 in asf": {"encoder": "mpeg2video", "options": MPEG, "container": "asf"},
    "mpeg2 in a vob at a low bit rate": {
        "encoder": "mpeg2video",
        "options": {**MPEG, "b": "60000"},
        "container": "vob",
    },
    "mpeg1 at a low bit rate": {"encoder": "mpeg1video", "options": {**MPEG, "b": "60000"}, "container": "mpeg"},
}
"""Files with B-frames whose container has no presentation timestamps, or few."""


@pytest.mark.parametrize("name", WITHOUT_PTS)
def test_pictures_without_timestamps_are_in_the_decoders_order(name: str) -> None:
    data = video((gray(level(index), (64, 48)) for index in range(60)), **WITHOUT_PTS[name])  # type: ignore[arg-type]
    found = probe(data)
    assert found.times == pytest.approx([index / 25 for index in range(60)], abs=0.001)
    frames = decode(data, 0, 60, 60, (48, 64))
    assert frames.indices == tuple(range(60))
    means = [float(picture.mean()) for picture in frames.pixels]
    assert means == pytest.approx([level(index) for index in range(60)], abs=3)


def test_truncated_matroska_file_is_shorter_than_it_declares() -> None:
    data = moving_video(48, container="matroska", options={"x264-params": SHORT_GROUPS})
    assert probe(data).seconds == pytest.approx(1.92)
    cut = data[: len(data) // 2]
    assert not is_complete(cut[:4096], len(cut))
    assert is_complete(data[:4096], len(data))
    assert probe(cut).seconds < 1.5
