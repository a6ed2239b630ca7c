"""Tests of every codec in its usual containers: pictures and times equal those of FFmpeg's full decode."""

from __future__ import annotations

from pathlib import Path

import pytest

from caption_assets.video.probe import probe
from tests.video.full_decode import full_decode
from tests.video.numbered import SIZE, Recording, numbers, recordings_by_name
from tests.videos import decode

FAST = {
    "h264 gop 10 b 2, mp4",
    "h264 gop 10 b 2, avi",
    "h264 gop 10 b 4, matroska, variable rate",
    "hevc open gop, mpegts",
    "mpeg2video gop 12 b 2, vob",
    "mpeg2video gop 12 b 2, asf",
    "mpeg4 gop 12 b 2, avi",
    "libvpx-vp9 hidden, webm",
    "av1, mp4",
    "gif, gif",
    "apng, apng",
}
"""One recording for each kind of timeline."""


def cases() -> list[object]:
    """All recordings, a few of them in the fast lane."""
    return [
        pytest.param(recording, id=name, marks=pytest.mark.fast if name in FAST else pytest.mark.faults)
        for name, recording in recordings_by_name()
    ]


@pytest.mark.parametrize("recording", cases())
def test_picture_of_every_recording_is_shown_at_its_time(recording: Recording, tmp_path: Path) -> None:
    path = tmp_path / "clip"
    path.write_bytes(data := recording.write())
    found = probe(data)
    first, total = recording.times[0], len(recording.times)
    assert found.times == pytest.approx([(time - first) / recording.rate for time in recording.times], abs=0.0011)

    reference = full_decode(path, SIZE)
    assert sorted(numbers(reference.pictures)) == list(range(total))

    whole = decode(data, 0, total, total, SIZE)
    assert whole.replaced == 0
    assert numbers(whole.pixels) == list(whole.indices)
    for start in range(0, total - 9, 10):
        window = decode(data, start, start + 10, 6, SIZE)
        assert numbers(window.pixels) == list(window.indices)
        assert (window.indices[0], window.indices[-1]) == (start, start + 9)


@pytest.mark.fast
def test_recordings_cover_200_combinations_and_all_containers() -> None:
    assert len(recordings_by_name()) >= 200
    containers = "mp4 mov matroska webm mpegts mpeg vob flv avi asf gif apng mxf nut"
    assert {recording.container for _, recording in recordings_by_name()} >= set(containers.split())
