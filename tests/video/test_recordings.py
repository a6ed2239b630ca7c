"""Property tests: random recordings with random faults show the pictures of FFmpeg's full decode or are refused."""

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
WITH_EXACT_TIMES = ("mp4", "matroska", "mpegts", "webm")
"""Containers that store any presentation time, to a millisecond or better."""


@st.composite
def recordings(draw: st.DrawFn, containers: tuple[str, ...] = tuple(ENCODERS), *, varying: bool = False) -> Recording:
    """Recordings of 8 to 30 pictures."""
    container = draw(st.sampled_from(containers))
    count = draw(st.integers(8, 30))
    steps = draw(st.lists(st.sampled_from([1, 1, 2, 3, 7]) if varying else st.just(1), min_size=count, max_size=count))
    times = tuple(sum(steps[: index + 1]) - steps[0] for index in range(count))
    return Recording(draw(ENCODERS[container]), container, times, draw(st.sampled_from([10, 25, 30, 50])))


def shown(data: bytes) -> tuple[Probe, Frames]:
    """The probe of a clip and all its frames, or all but one if their number is odd."""
    found = probe(data)
    return found, decode(data, 0, found.frames, found.frames // 2 * 2, SIZE)


def reference(data: bytes) -> tuple[tuple[float, ...], list[int]]:
    """Times and numbers of the pictures of FFmpeg's full decode."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "clip"
        path.write_bytes(data)
        decoded = full_decode(path, SIZE)
    return decoded.times, numbers(decoded.pictures)


PROPERTY = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@pytest.mark.faults
@PROPERTY
@given(st.one_of(recordings(), recordings(WITH_EXACT_TIMES, varying=True)))
def test_pictures_and_times_equal_a_full_decode(recording: Recording) -> None:
    data = recording.write()
    times, pictures = reference(data)
    found, frames = shown(data)
    assert frames.replaced == 0
    for number, index in zip(numbers(frames.pixels), frames.indices, strict=True):
        time = found.times[index]
        if recording.container in WITH_EXACT_TIMES:
            assert number == pictures[bisect_right(times, time + 0.0015) - 1]
        assert recording.times[number] == pytest.approx(time * recording.rate, abs=0.06)


@pytest.mark.faults
@PROPERTY
@given(recordings(("mpegts",)), recordings(("mpegts",)), st.sampled_from([-3600, -30, 0, 30, 3600]), st.floats(0, 0.9))
def test_concatenated_recordings_are_one_clip(first: Recording, second: Recording, jump: int, cut: float) -> None:
    second = Recording(first.encoder, "mpegts", second.times, first.rate, first=len(first.times))
    parts = first.write(), shifted(second, jump)
    joined = parts[0] + parts[1][int(len(parts[1]) / 188 * cut) * 188 :]
    try:
        found, frames = shown(joined)
    except UnreadableClip as error:
        assert error.kind in {"damaged", "no_timestamps"}  # noqa: PT017
        assert cut > 0
        return
    seen = numbers(frames.pixels)
    certain = max(len(first.times) - 5, 0)  # at the joint, decoders and FFmpeg's command line mix pictures of both
    assert seen[:certain] == list(frames.indices[:certain])
    assert found.seconds < (len(first.times) + len(second.times) + 20) / first.rate
    if cut == 0:
        assert found.frames == len(first.times) + len(second.times)
        assert seen == list(frames.indices)


def shifted(recording: Recording, seconds: int) -> bytes:
    """A transport stream whose timestamps are shifted."""
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


def with_keyframe_flags(data: bytes, container: str, flags: list[bool]) -> bytes:
    """A file with more packets flagged as keyframes.

    Args:
        data: the file.
        container: FFmpeg's name of the muxer.
        flags: whether to flag each packet, repeated for all packets.
    """
    file = BytesIO()
    with av.open(BytesIO(data), "r") as source, av.open(file, "w", format=container) as output:
        given = source.streams.video[0]
        stream: VideoStream = output.add_stream_from_template(given)
        packets: list[Packet[VideoStream]] = [packet for packet in source.demux(given) if packet.size]
        for number, packet in enumerate(packets):
            packet.is_keyframe = packet.is_keyframe or flags[number % len(flags)]
            packet.stream = stream
            output.mux(packet)
    return file.getvalue()


@pytest.mark.faults
@PROPERTY
@given(recordings(("mp4", "matroska")), st.lists(st.booleans(), min_size=1, max_size=5), st.data())
def test_wrong_keyframe_flags_change_no_picture(recording: Recording, flags: list[bool], chance: st.DataObject) -> None:
    data = with_keyframe_flags(recording.write(), recording.container, flags)
    total = probe(data).frames
    assert total == len(recording.times)
    start = chance.draw(st.integers(0, total - 4))
    frames = decode(data, start, total, 4, SIZE)
    assert numbers(frames.pixels) == list(frames.indices)


@pytest.mark.faults
@PROPERTY
@given(recordings(("mpegts", "mpeg", "avi", "flv", "mp4")), st.data())
def test_bytes_that_are_dropped_or_zeroed_change_no_earlier_picture(
    recording: Recording, chance: st.DataObject
) -> None:
    whole = recording.write()
    data = bytearray(whole)
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
    intact = pictures_before(whole, at)
    assert numbers(frames.pixels)[:intact] == list(frames.indices[:intact])


def pictures_before(data: bytes, end: int) -> int:
    """Number of pictures stored before a byte, less 8: later pictures may be presented among the last of them."""
    with av.open(BytesIO(data), "r") as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    return max(sum(place is not None and 0 <= place < end for place in places) - 8, 0)
