from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.video.container import open_video
from caption_assets.video.payload import PacketContent, Payload, PayloadParser
from tests.videos import film

pytestmark = pytest.mark.fast

CASES = Path(__file__).parent / "cases"


def contents(data: bytes) -> list[Payload]:
    with open_video(data) as (container, stream):
        reader = PayloadParser(stream)
        return [reader.read(memoryview(packet)) for packet in container.demux(stream) if packet.size]


def held(name: str) -> list[PacketContent]:
    return [payload.content for payload in contents((CASES / name).read_bytes())]


@pytest.mark.parametrize("name", ["paff_frame.ts", "paff_field.ts"])
def test_the_second_field_of_a_picture_is_none_of_its_own(name: str) -> None:
    assert held(name) == [PacketContent.PICTURE, PacketContent.NO_PICTURE] * 30


def test_packets_of_metadata_hold_no_picture() -> None:
    assert held("drone_sei.mp4") == [PacketContent.PICTURE, PacketContent.NO_PICTURE, PacketContent.NO_PICTURE] * 100


@pytest.mark.parametrize(("name", "hidden"), [("vp8_altref.webm", 6), ("vp8_altref_ms.webm", 2)])
def test_hidden_frames_are_no_pictures(name: str, hidden: int) -> None:
    assert held(name).count(PacketContent.NO_PICTURE) == hidden


def test_only_a_decoder_tells_the_pictures_of_packed_packets() -> None:
    assert PacketContent.UNKNOWN in held("packed.avi")


@pytest.mark.parametrize("name", ["allkey_hevc.mkv", "mpeg4_nostss.mp4"])
def test_a_keyframe_is_one_by_its_content(name: str) -> None:
    keys = [payload.can_be_keyframe for payload in contents((CASES / name).read_bytes())]
    assert keys[0]
    assert sum(keys) < 20


FILMS = ["h264", "h264 interlaced", "h264 transport stream", "hevc", "mpeg2", "mpeg4", "vp8", "vp9", "av1", "gif"]


@pytest.mark.parametrize("name", FILMS)
def test_every_packet_of_an_ordinary_film_holds_a_picture(name: str) -> None:
    found = contents(film(name))
    assert {payload.content for payload in found} == {PacketContent.PICTURE}
    assert found[0].can_be_keyframe


def test_superframes_hold_one_picture_and_keep_their_keyframes() -> None:
    found = contents(film("vp9 hidden frames"))
    assert {payload.content for payload in found} == {PacketContent.PICTURE}
    assert sum(payload.can_be_keyframe for payload in found) == 2


@given(st.sampled_from(FILMS), st.lists(st.binary(min_size=1, max_size=60), max_size=6))
def test_any_bytes_are_read(name: str, packets: list[bytes]) -> None:
    with open_video(film(name)) as (_, stream):
        reader = PayloadParser(stream)
        assert all(reader.read(memoryview(packet)).content in PacketContent for packet in packets)
