from __future__ import annotations

import pytest

from caption_assets.clips import parameter_sets
from caption_assets.clips.container import open_video
from tests.videos import film, film_that_grows, film_whose_parameters_change

pytestmark = pytest.mark.fast


def are_at_hand(data: bytes) -> bool:
    with open_video(data) as (container, stream):
        return parameter_sets.are_at_hand(stream, list(container.demux(stream)))


@pytest.mark.parametrize("name", ["h264", "h264 transport stream", "hevc", "vp9", "mpeg2 transport stream"])
def test_a_stream_of_the_same_parameters_can_be_entered_anywhere(name: str) -> None:
    assert are_at_hand(film(name))


def test_so_can_one_that_tells_new_ones_at_every_key_frame() -> None:
    assert are_at_hand(film_that_grows())


@pytest.mark.parametrize("container", ["flv", "mpegts"])
def test_one_that_tells_new_ones_once_cannot(container: str) -> None:
    assert not are_at_hand(film_whose_parameters_change(container))
