from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from caption_assets.video.decode import ClipDecoder, PauseReached
from tests.videos import decode, moving_video, video_of_kind

pytestmark = pytest.mark.fast

SIZE = 40, 56
ONE_GROUP = {"x264-params": "keyint=infinite:scenecut=0:bframes=3:b-pyramid=normal:threads=1"}


class CountingFile(BytesIO):
    """A file that counts the bytes read from all of its instances."""

    read_bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        CountingFile.read_bytes += len(data)
        return data


@contextmanager
def opened(data: bytes) -> Iterator[ClipDecoder]:
    with closing(ClipDecoder(partial(BytesIO, data))) as decoder:
        yield decoder


@pytest.mark.parametrize(
    "name",
    ["h264", "h264 open groups", "h264 one group", "h264 gradual refresh", "hevc open groups", "mpeg2", "mpeg4",
     "vp8", "vp9 hidden frames", "av1 one group", "mjpeg", "gif", "h264 interlaced"],
)  # fmt: skip
@pytest.mark.parametrize("length", [5, 9, 16])
def test_windows_in_order_equal_single_decodes(name: str, length: int) -> None:
    data = video_of_kind(name)
    with opened(data) as decoder:
        for start in range(0, 48 - length + 1, length):
            found = decoder.frames(start, start + length, 4, SIZE)
            single = decode(data, start, start + length, 4, SIZE)
            assert (found.indices, found.fps, found.replaced) == (single.indices, single.fps, single.replaced)
            assert np.array_equal(found.pixels, single.pixels)


def test_windows_in_any_order_equal_single_decodes() -> None:
    data = video_of_kind("h264 one group")
    with opened(data) as decoder:
        for start in (30, 0, 12, 12, 38, 6):
            found, single = decoder.frames(start, start + 9, 5, SIZE), decode(data, start, start + 9, 5, SIZE)
            assert np.array_equal(found.pixels, single.pixels)


def test_windows_around_undecodable_pictures_equal_single_decodes() -> None:
    data = (Path(__file__).parent / "cases" / "hevc_splice.mp4").read_bytes()
    with opened(data) as decoder:
        found = [decoder.frames(start, start + 20, 20, SIZE) for start in range(0, 100, 20)]
    assert sum(frames.replaced for frames in found) == 4
    for start, frames in zip(range(0, 100, 20), found, strict=True):
        assert np.array_equal(frames.pixels, decode(data, start, start + 20, 20, SIZE).pixels)


def test_windows_in_order_read_the_clip_once() -> None:
    data = moving_video(600, size=(48, 32), options=ONE_GROUP)
    CountingFile.read_bytes = 0
    with closing(ClipDecoder(partial(CountingFile, data))) as decoder:
        assert decoder.is_sequential
        for start in range(0, 600, 20):
            decoder.frames(start, start + 20, 4, (32, 48))
    assert CountingFile.read_bytes < 3 * len(data)  # once for the timeline, once to decode, and the container's header


def test_clip_with_many_keyframes_is_not_sequential() -> None:
    with opened(video_of_kind("h264")) as decoder:
        assert not decoder.is_sequential


def test_paused_decoder_resumes_at_its_position() -> None:
    data = video_of_kind("h264 one group")
    with opened(data) as decoder:
        reached = []
        for _ in range(100):
            try:
                frames = decoder.frames(40, 48, 4, SIZE, pause_at=0.0)
                break
            except PauseReached:
                reached.append(decoder.position)
        assert reached == sorted(set(reached))
        assert len(reached) > 3
        assert np.array_equal(frames.pixels, decode(data, 40, 48, 4, SIZE).pixels)
