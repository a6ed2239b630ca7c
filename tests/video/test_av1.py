from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.video.av1 import ReferenceReader, read_unit
from caption_assets.video.container import open_video
from tests.videos import FILMS, film

pytestmark = pytest.mark.fast


def packets(name: str) -> list[bytes]:
    with open_video(film(name)) as (container, stream):
        return [bytes(packet) for packet in container.demux(stream)]


def referred(data: list[bytes]) -> list[bool]:
    reader = ReferenceReader()
    return [reader.is_referred(memoryview(packet)) for packet in data]


@pytest.mark.parametrize("name", [name for name in FILMS if name.startswith("av1")])
def test_a_part_of_the_packets_is_referred_to_by_none(name: str) -> None:
    told = referred(packets(name))
    assert told[0]
    assert 0.1 < told.count(False) / len(told) < 0.6


@pytest.mark.parametrize("name", [name for name in FILMS if name.startswith("av1")])
def test_every_packet_shows_a_picture_and_keyframes_are_those_that_the_container_names(name: str) -> None:
    with open_video(film(name)) as (container, stream):
        for packet in container.demux(stream):
            if packet.size:
                unit = read_unit(memoryview(packet))
                assert (unit.is_shown, unit.is_key) == (True, packet.is_keyframe)


def test_without_a_sequence_header_any_packet_may_be_referred_to() -> None:
    assert all(referred(packets("av1 one group")[1:]))


@given(st.lists(st.binary(max_size=80), max_size=5))
def test_bytes_of_any_kind_are_told_of(data: list[bytes]) -> None:
    assert len(referred(data)) == len(data)
