from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from caption_assets.clips.container import UnreadableClip
from caption_assets.clips.decode import decode
from caption_assets.clips.probe import probe
from tests.videos import SHORT_GROUPS, film_of_few_stamps, film_whose_stamps_begin_anew, moving_video

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("container", ["mpegts", "mpeg"])
def test_recordings_put_one_behind_the_other_are_one_clip(container: str) -> None:
    found = probe(film_whose_stamps_begin_anew(container))
    assert found.frames == 96
    assert found.fps == pytest.approx(25)
    assert not found.variable_fps


def test_a_frame_without_a_stamp_is_shown_a_frames_time_after_the_one_before() -> None:
    found = probe(film_of_few_stamps())
    assert found.times == pytest.approx([index / 25 for index in range(48)], abs=0.001)


def film_in_stored_order() -> bytes:
    return moving_video(48, container="avi", options={"x264-params": SHORT_GROUPS})


@pytest.mark.parametrize("make", [partial(film_of_few_stamps, bframes=2), film_in_stored_order])
def test_frames_that_are_shown_in_an_order_that_nobody_tells_are_refused(make: Callable[[], bytes]) -> None:
    data = make()
    for look in (lambda: probe(data), lambda: decode(data, 0, 16, 4, (48, 64))):
        with pytest.raises(UnreadableClip, match="does not tell when each frame is shown") as refused:
            look()
        assert refused.value.kind == "no_timestamps"
