from __future__ import annotations

import pytest

from caption_assets.video.container import open_video
from caption_assets.video.parameter_sets import ParameterSetReader
from tests.videos import (
    film,
    film_that_grows,
    film_whose_parameters_change,
    film_whose_parameters_change_within_samples,
)

pytestmark = pytest.mark.fast


def can_start_at_any_keyframe(data: bytes) -> bool:
    with open_video(data) as (container, stream):
        reader = ParameterSetReader(stream)
        for packet in container.demux(stream):
            if packet.size:
                reader.add(packet, is_keyframe=packet.is_keyframe)
        return reader.can_start_at_any_keyframe


@pytest.mark.parametrize("name", ["h264", "h264 transport stream", "hevc", "vp9", "mpeg2 transport stream"])
def test_a_stream_of_the_same_parameters_can_be_entered_anywhere(name: str) -> None:
    assert can_start_at_any_keyframe(film(name))


def test_so_can_one_that_tells_new_ones_at_every_key_frame() -> None:
    assert can_start_at_any_keyframe(film_that_grows())


@pytest.mark.parametrize("container", ["flv", "mpegts"])
def test_one_that_tells_new_ones_once_cannot(container: str) -> None:
    assert not can_start_at_any_keyframe(film_whose_parameters_change(container))


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_nor_can_one_whose_samples_tell_new_ones_once(container: str) -> None:
    assert not can_start_at_any_keyframe(film_whose_parameters_change_within_samples(container))
