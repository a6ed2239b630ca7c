"""Random recordings with random faults: what FFmpeg's full decode shows, or a row that says why not."""

from __future__ import annotations

from bisect import bisect_right
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import pytest
from av import Packet
from av.video.stream import VideoStream
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caption_assets.errors import UnreadableClip
from caption_assets.video.decode import Frames
from caption_assets.video.probe import Probe, probe
from tests.video.full_decode import full_decode
from tests.video.numbered import SIZE, Recording, mpeg, numbers, vpx, x264, x265
from tests.videos import decode

GROUPS = st.sampled_from([1, 2, 5, 12, 250])
BFRAMES = st.sampled_from([0, 1, 2, 4])
H264 = st.builds(x264, gop=GROUPS, bframes=BFRAMES, open_gop=st.sampled_from(["0", "1"]))
HEVC = st.builds(x265, gop=GROUPS, bframes=BFRAMES, open_gop=st.booleans())
MPEG2 = st.builds(mpeg, st.just("mpeg2video"), gop=st.sampled_from([1, 5, 12]), bframes=st.sampled_from([0, 2]))
MPEG4 = st.builds(mpeg, st.just("mpeg4"), gop=st.sampled_from([1, 5, 12]), bframes=st.sampled_from([0, 2]))
VPX = st.builds(vpx, st.sampled_from(["libvpx", "libvpx-vp9"]), gop=st.sampled_from([5, 12]), hidden=st.booleans())
ENCODERS = {
    "mp4": st.one_of(H264, HEVC, MPEG4),
    "matroska": st.one_of(H264, HEVC, MPEG2, MPEG4, VPX),
    "mpegts": st.one_of(H264, HEVC, MPEG2, MPEG4),
    "flv": H264,
    "avi": st.one_of(H264, MPEG4),
    "webm": VPX,
    "mpeg": st.one_of(MPEG2, H264),
    "asf": st.one_of(MPEG2, MPEG4),
}
STATE_TIMES = ("mp4", "matroska", "mpegts", "webm")
"""Containers in which pictures may come at any time, and that keep it to a thousandth of a second."""


@st.composite
def recordings(draw: st.DrawFn, containers: tuple[str, ...] = tuple(ENCODERS), *, varying: bool = False) -> Recording:
    """Recordings of 8 to 30 pictures."""
    container = draw(st.sampled_from(containers))
    count = draw(st.integers(8, 30))
    steps = draw(st.lists(st.sampled_from([1, 1, 2, 3, 7]) if varying else st.just(1), min_size=count, max_size=count))
    times = tuple(sum(steps[: index + 1]) - steps[0] for index in range(count))
    return Recording(draw(ENCODERS[container]), container, times, draw(st.sampled_from([10, 25, 30, 50])))


def shown(data: bytes) -> tuple[Probe, Frames]:
    """All frames of a clip, or one less than all."""
    found = probe(data)
    return found, decode(data, 0, found.frames, found.frames // 2 * 2, SIZE)


def reference(data: bytes) -> tuple[tuple[float, ...], list[int]]:
    """Times and numbers of the pictures that FFmpeg's full decode shows."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "clip"
        path.write_bytes(data)
        there = full_decode(path, SIZE)
    return there.times, numbers(there.pictures)


PROPERTY = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@pytest.mark.faults
@PROPERTY
@given(st.one_of(recordings(), recordings(STATE_TIMES, varying=True)))
def test_a_moment_shows_the_picture_of_a_full_decode(recording: Recording) -> None:
    data = recording.write()
    times, pictures = reference(data)
    found, frames = shown(data)
    assert frames.replaced == 0
    for number, index in zip(numbers(frames.pixels), frames.indices, strict=True):
        moment = found.times[index]
        if recording.container in STATE_TIMES:
            assert number == pictures[bisect_right(times, moment + 0.0015) - 1]
        assert recording.times[number] == pytest.approx(moment * recording.rate, abs=0.06)


@pytest.mark.faults
@PROPERTY
@given(recordings(("mpegts",)), recordings(("mpegts",)), st.sampled_from([-3600, -30, 0, 30, 3600]), st.floats(0, 0.9))
def test_recordings_put_one_behind_the_other_go_on(first: Recording, second: Recording, jump: int, cut: float) -> None:
    second = Recording(first.encoder, "mpegts", second.times, first.rate, first=len(first.times))
    parts = first.write(), moved(second, jump)
    whole = parts[0] + parts[1][int(len(parts[1]) / 188 * cut) * 188 :]
    try:
        found, frames = shown(whole)
    except UnreadableClip as error:
        assert error.kind in {"damaged", "no_timestamps"}  # noqa: PT017
        assert cut > 0
        return
    seen = numbers(frames.pixels)
    sure = max(len(first.times) - 5, 0)  # at the seam a decoder mixes pictures of both, FFmpeg's command line as well
    assert seen[:sure] == list(frames.indices[:sure])
    assert found.seconds < (len(first.times) + len(second.times) + 20) / first.rate
    if cut == 0:
        assert found.frames == len(first.times) + len(second.times)
        assert seen == list(frames.indices)


def moved(recording: Recording, seconds: int) -> bytes:
    """A transport stream whose clock begins elsewhere."""
    file = BytesIO()
    with av.open(BytesIO(recording.write()), "r") as source, av.open(file, "w", format="mpegts") as output:
        given = source.streams.video[0]
        stream = output.add_stream_from_template(given)
        shift = round((seconds + 4000) / (given.time_base or 1))
        for packet in source.demux(given):
            if packet.size:
                packet.pts, packet.dts = (packet.pts or 0) + shift, (packet.dts or 0) + shift
                packet.stream = stream
                output.mux(packet)
    return file.getvalue()


def remuxed(data: bytes, container: str, change: list[str]) -> bytes:
    """A file whose packets have other flags or timestamps.

    Args:
        data: the file.
        container: to write.
        change: for each packet what to change, over and over.
    """
    file = BytesIO()
    with av.open(BytesIO(data), "r") as source, av.open(file, "w", format=container) as output:
        given = source.streams.video[0]
        stream: VideoStream = output.add_stream_from_template(given)
        packets: list[Packet[VideoStream]] = [packet for packet in source.demux(given) if packet.size]
        for number, packet in enumerate(packets):
            packet.is_keyframe = packet.is_keyframe or change[number % len(change)] == "key"
            packet.stream = stream
            output.mux(packet)
    return file.getvalue()


@pytest.mark.faults
@PROPERTY
@given(recordings(("mp4", "matroska")), st.lists(st.sampled_from(["key", "leave"]), min_size=1, max_size=5), st.data())
def test_wrong_keyframe_flags_change_no_picture(recording: Recording, change: list[str], chance: st.DataObject) -> None:
    data = remuxed(recording.write(), recording.container, change)
    total = probe(data).frames
    assert total == len(recording.times)
    start = chance.draw(st.integers(0, total - 4))
    frames = decode(data, start, total, 4, SIZE)
    assert numbers(frames.pixels) == list(frames.indices)


@pytest.mark.faults
@PROPERTY
@given(recordings(("mpegts", "mpeg", "avi", "flv", "mp4")), st.data())
def test_bytes_that_are_dropped_or_changed_leave_right_pictures_or_a_reason(
    recording: Recording, chance: st.DataObject
) -> None:
    data = bytearray(recording.write())
    at = chance.draw(st.integers(0, len(data) - 1))
    length = chance.draw(st.integers(1, min(600, len(data) - at)))
    data[at : at + length] = chance.draw(st.sampled_from([b"", bytes(length)]))
    try:
        found, frames = shown(bytes(data))
    except UnreadableClip as error:
        assert str(error)  # noqa: PT017
        return
    assert frames.replaced <= len(frames.indices) / 4
    assert list(frames.indices) == sorted(frames.indices)
    assert found.times == tuple(sorted(found.times))
    assert max(numbers(frames.pixels)) < 256
