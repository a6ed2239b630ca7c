from __future__ import annotations

import pytest

from caption_assets.video.container import open_video
from caption_assets.video.parameter_sets import ParameterSetReader
from tests.videos import (
    video_of_kind,
    video_that_grows,
    video_with_changing_parameter_sets,
    video_with_parameter_sets_in_samples,
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
def test_stream_with_constant_parameter_sets_can_start_at_any_keyframe(name: str) -> None:
    assert can_start_at_any_keyframe(video_of_kind(name))


def test_stream_with_parameter_sets_at_every_keyframe_can_start_at_any_keyframe() -> None:
    assert can_start_at_any_keyframe(video_that_grows())


@pytest.mark.parametrize("container", ["flv", "mpegts"])
def test_stream_that_changes_parameter_sets_once_cannot_start_at_any_keyframe(container: str) -> None:
    assert not can_start_at_any_keyframe(video_with_changing_parameter_sets(container))


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_stream_that_changes_parameter_sets_in_samples_cannot_start_at_any_keyframe(container: str) -> None:
    assert not can_start_at_any_keyframe(video_with_parameter_sets_in_samples(container))
