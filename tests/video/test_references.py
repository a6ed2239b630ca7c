from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache, partial
from io import BytesIO
from typing import cast

import av
import numpy as np
import pytest
from av import Packet
from av.codec.context import CodecContext
from av.video.stream import VideoStream
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.video.container import open_video
from caption_assets.video.decode import ClipDecoder
from caption_assets.video.decode_plan import needed_packets
from caption_assets.video.nal_units import escaped, unescaped
from caption_assets.video.picture import Renderer
from caption_assets.video.picture_stream import STRICT_OPTIONS, PictureStream
from caption_assets.video.references import ReferenceReader, References, nearest_order
from caption_assets.video.track import DEFAULT_TRACK
from tests.videos import RGB, moving_video, video_of_kind

pytestmark = pytest.mark.fast

SIZE = 40, 56
FRAMES = 72


def params(**changes: object) -> str:
    """x264's parameters for groups of I, P and B pictures, in which P pictures are predicted from one picture."""
    usual = {"ref": 1, "bframes": 3, "b-adapt": 0, "scenecut": 0, "keyint": 48, "threads": 1}
    return ":".join(f"{name.replace('_', '-')}={value}" for name, value in {**usual, **changes}.items())


@cache
def clip(x264_params: str, container: str = "mp4") -> bytes:
    return moving_video(FRAMES, (96, 64), options={"x264-params": x264_params}, container=container)


@contextmanager
def opened(data: bytes) -> Iterator[tuple[VideoStream, list[Packet[VideoStream]], References | None]]:
    """A clip's stream, packets and references."""
    with open_video(data) as (container, stream):
        reader = ReferenceReader(stream)
        packets = [packet for packet in container.demux(stream) if packet.size]
        for number, packet in enumerate(packets):
            packet.pts = packet.dts = number
            reader.add(packet)
        yield stream, packets, reader.references


def references(data: bytes) -> References | None:
    with opened(data) as (_, _, found):
        return found


def plain_decode(data: bytes) -> list[RGB]:
    with open_video(data) as (container, stream):
        renderer = Renderer(stream, DEFAULT_TRACK, SIZE)
        return [renderer.render(frame).pixels for frame in container.decode(stream)]


STREAMS = [
    params(),
    params(bframes=2, b_pyramid="strict"),
    params(bframes=7, b_pyramid="strict"),
    params(bframes=16, b_adapt=2, direct="temporal"),
    params(weightp=2, weightb=1, direct="auto"),
    params(cabac=0),
    params(cabac_idc=1, qp=1),
    params(cabac_idc=2, qp=51),
    params(keyint=250, ref=4, b_pyramid="strict"),
    params(repeat_headers=1, aud=1),
    params(slices=4),
]


@pytest.mark.parametrize("x264_params", STREAMS)
@pytest.mark.parametrize("container", ["mp4", "mpegts"])
def test_frames_equal_a_plain_decode_if_reference_pictures_are_skipped(x264_params: str, container: str) -> None:
    data = clip(x264_params, container)
    assert references(data)
    plain = plain_decode(data)
    with closing(ClipDecoder(partial(BytesIO, data))) as decoder:
        for start, end, count in ((0, 72, 2), (0, 72, 7), (10, 40, 4), (12, 30, 18), (30, 72, 5), (41, 72, 3)):
            frames = decoder.frames(start, end, count, SIZE)
            for pixels, index in zip(frames.pixels, frames.indices, strict=True):
                assert np.array_equal(pixels, plain[index]), f"frame {index} of {start} to {end}"


def test_middle_b_picture_is_not_needed_by_later_pictures() -> None:
    found = references(clip(params()))
    assert found
    # In decoding order: I0 P4 B2 b1 b3, then P8 B6 b5 b7, and so on.
    assert needed_packets(found.packets, range(10), {9}) == {0, 1, 5, 9}
    assert needed_packets(found.packets, range(8), {7}) == {0, 1, 5, 6, 7}


@pytest.mark.parametrize(("table", "quantizer"), [(table, qp) for table in range(3) for qp in (1, 10, 22, 33, 44, 51)])
def test_empty_picture_is_decoded_without_error(table: int, quantizer: int) -> None:
    with opened(clip(params(cabac_idc=table, qp=quantizer))) as (stream, packets, found):
        assert found
        context = CodecContext.create("h264", "r")
        context.extradata = stream.codec_context.extradata
        context.options = dict(STRICT_OPTIONS)
        sent = [found.empty(packet) for packet in packets]
        assert 0 < sum(each is None for each in sent) < len(packets)
        assert sum(each is not None and each.size < 64 for each in sent) >= 10
        for packet in (*(each for each in sent if each is not None), None):
            context.decode(packet)


@pytest.mark.parametrize(
    "x264_params",
    [
        params(ref=4, bframes=2, keyint=250, b_pyramid="normal"),  # P pictures may be predicted from B pictures
        params(bframes=0),
        params(b_pyramid="none"),
        params(slice_max_size=200),
        params(open_gop=1),
        params(intra_refresh=1),
        params(tff=1),
    ],
)
def test_references_of_other_streams_are_not_certain(x264_params: str) -> None:
    assert references(clip(x264_params)) is None


@pytest.mark.parametrize("name", ["hevc", "vp9", "mpeg2"])
def test_references_of_other_codecs_are_not_certain(name: str) -> None:
    assert references(video_of_kind(name)) is None


@pytest.mark.parametrize("number", [1, 5, 9])
@pytest.mark.parametrize("slices", [1, 4])
def test_no_reference_picture_of_a_damaged_clip_is_skipped(number: int, slices: int) -> None:
    data = bytearray(clip(params(keyint=250, slices=slices)))
    with opened(bytes(data)) as (_, packets, _):
        begin, size = cast(int, packets[number].pos), packets[number].size
    data[begin + size // 2 : begin + size] = bytes(size - size // 2)
    open_file = partial(BytesIO, bytes(data))
    with closing(ClipDecoder(open_file)) as decoder:
        frames = decoder.frames(0, FRAMES, 6, SIZE)
    with closing(PictureStream(open_file, decodes_all=False)) as stream:
        timeline, _, _ = stream.read_all()
        wanted = [timeline.sources[index] for index in frames.indices]
        render = stream.renderer(SIZE).render
        shown = {frame.pts: render(frame).pixels for frame in stream.pictures([range(FRAMES)], wanted)}
    assert all(np.array_equal(pixels, shown[at]) for pixels, at in zip(frames.pixels, wanted, strict=True))


def test_clip_is_decoded_without_references_if_a_skipped_header_is_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise IndexError("tuple index out of range")

    open_file = partial(BytesIO, clip(params()))
    with closing(ClipDecoder(open_file)) as decoder:
        expected = decoder.frames(0, FRAMES, 3, SIZE)
    monkeypatch.setattr(References, "empty", fail)
    with closing(ClipDecoder(open_file)) as decoder:
        frames = decoder.frames(0, FRAMES, 3, SIZE)
    assert frames.replaced == 0
    assert np.array_equal(frames.pixels, expected.pixels)


@pytest.mark.parametrize(("lsb", "before", "order"), [(8, 0, 8), (0, 8, 16), (9, 0, -7), (4, 6, 4), (2, 30, 34)])
def test_picture_order_is_nearest_to_the_last_reference(lsb: int, before: int, order: int) -> None:
    assert nearest_order(lsb, before, 16) == order


def test_references_are_not_certain_if_a_picture_is_lost() -> None:
    with open_video(clip(params())) as (container, stream):
        reader = ReferenceReader(stream)
        for number, packet in enumerate(container.demux(stream)):
            if packet.size and number != 5:
                reader.add(packet)
        assert reader.references is None


@given(st.binary(max_size=400))
def test_references_of_any_bytes_are_read(data: bytes) -> None:
    with open_video(clip(params())) as (_, stream):
        reader = ReferenceReader(stream)
        reader.add(cast("Packet[VideoStream]", av.Packet(data)))
        assert reader.references is None or len(reader.references.packets) <= 1


@given(
    st.lists(st.lists(st.integers(1, 6), max_size=3), min_size=1, max_size=40), st.sets(st.integers(0, 39)), st.data()
)
def test_needed_packets_contain_what_they_are_predicted_from(
    distances: list[list[int]], wanted: set[int], data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(distances) - 1))
    planned = range(start, len(distances))
    packets = [
        [number - each for each in found if number - each >= start] if number > start else []
        for number, found in enumerate(distances)
    ]
    needed = needed_packets(packets, planned, wanted)
    assert wanted.intersection(planned) <= needed <= set(planned)
    assert all(needed.issuperset(packets[number]) for number in needed)
    for number in needed - wanted - {start}:
        assert any(number in packets[other] for other in needed)


@given(st.lists(st.sampled_from([0, 0, 0, 1, 2, 3, 4, 255])).map(bytes))
def test_escaped_data_contains_no_start_code(data: bytes) -> None:
    assert unescaped(memoryview(escaped(data))) == data
    assert not any(code in escaped(data) for code in (b"\0\0\0", b"\0\0\1", b"\0\0\2"))
