from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.video.container import open_video
from caption_assets.video.payload import PacketContent, Payload, PayloadParser
from tests.videos import video_of_kind

pytestmark = pytest.mark.fast

CASES = Path(__file__).parent / "cases"


def payloads(data: bytes) -> list[Payload]:
    with open_video(data) as (container, stream):
        parser = PayloadParser(stream)
        return [parser.read(memoryview(packet)) for packet in container.demux(stream) if packet.size]


def contents(name: str) -> list[PacketContent]:
    return [payload.content for payload in payloads((CASES / name).read_bytes())]


@pytest.mark.parametrize("name", ["paff_frame.ts", "paff_field.ts"])
def test_second_field_of_a_picture_is_no_picture(name: str) -> None:
    assert contents(name) == [PacketContent.PICTURE, PacketContent.NO_PICTURE] * 30


def test_metadata_packet_has_no_picture() -> None:
    assert (
        contents("drone_sei.mp4") == [PacketContent.PICTURE, PacketContent.NO_PICTURE, PacketContent.NO_PICTURE] * 100
    )


@pytest.mark.parametrize(("name", "hidden"), [("vp8_altref.webm", 6), ("vp8_altref_ms.webm", 2)])
def test_hidden_frame_is_no_picture(name: str, hidden: int) -> None:
    assert contents(name).count(PacketContent.NO_PICTURE) == hidden


def test_content_of_packed_packets_is_unknown() -> None:
    assert PacketContent.UNKNOWN in contents("packed.avi")


@pytest.mark.parametrize("name", ["allkey_hevc.mkv", "mpeg4_nostss.mp4"])
def test_keyframe_is_detected_by_its_content(name: str) -> None:
    keys = [payload.can_be_keyframe for payload in payloads((CASES / name).read_bytes())]
    assert keys[0]
    assert sum(keys) < 20


KINDS = ["h264", "h264 interlaced", "h264 transport stream", "hevc", "mpeg2", "mpeg4", "vp8", "vp9", "av1", "gif"]


@pytest.mark.parametrize("name", KINDS)
def test_every_packet_of_an_ordinary_video_has_a_picture(name: str) -> None:
    found = payloads(video_of_kind(name))
    assert {payload.content for payload in found} == {PacketContent.PICTURE}
    assert found[0].can_be_keyframe


def test_superframe_has_one_picture_and_can_be_a_keyframe() -> None:
    found = payloads(video_of_kind("vp9 hidden frames"))
    assert {payload.content for payload in found} == {PacketContent.PICTURE}
    assert sum(payload.can_be_keyframe for payload in found) == 2


@given(st.sampled_from(KINDS), st.lists(st.binary(min_size=1, max_size=60), max_size=6))
def test_parser_reads_any_bytes(name: str, packets: list[bytes]) -> None:
    with open_video(video_of_kind(name)) as (_, stream):
        parser = PayloadParser(stream)
        assert all(parser.read(memoryview(packet)).content in PacketContent for packet in packets)
