"""Tests of unusual clips on the session's engine, from probe and windows to decoding and captions."""

from __future__ import annotations

from fractions import Fraction
from io import BytesIO
from itertools import pairwise
from typing import Any

import av
import numpy as np
import pytest

from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.sample.clips import encode_frames
from caption_assets.sample.world import Scene, random_scene, render
from caption_assets.video.window import Windowing
from caption_assets.workers.sandbox import Sandbox, SandboxLimits
from tests.captioning.window_jobs import video_jobs
from tests.conftest import RunAsync, caption_all
from tests.stages import STAGE1, STAGE2
from tests.videos import slow_video

pytestmark = pytest.mark.engine

FRAMES = 60
MOTIONS = ("moves left", "moves right", "moves up", "moves down")


def scene(motion: str, width: int, height: int, *, skip: int = 0) -> Scene:
    """The first scene with this motion after ``skip`` others."""
    rng = np.random.default_rng(11)
    found = (made for _ in range(9999) if (made := random_scene(rng, width, height)).motion == motion)
    return [next(found) for _ in range(skip + 1)][-1]


def encode_scene(shown: Scene, width: int, height: int, *, timestamps: list[int], turned: int = 0) -> bytes:
    """A video of one scene.

    Args:
        shown: the scene; each frame shows it at the frame's own time.
        width: width of the displayed picture.
        height: height of the displayed picture.
        timestamps: presentation times of the frames, in units of 1/100 s.
        turned: rotation in the metadata, in degrees counter-clockwise; the coded picture is turned the other way.
    """
    times = [(timestamp - timestamps[0]) / (timestamps[-1] - timestamps[0]) for timestamp in timestamps]
    file = BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=100, options={"crf": "18", "bf": "2"})
        stream.width, stream.height = (height, width) if turned % 180 else (width, height)
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 100)
        stream.set_display_rotation(turned)
        for timestamp, picture in zip(
            timestamps, render(shown, width, height, times, np.random.default_rng(0)), strict=True
        ):
            coded = np.ascontiguousarray(np.rot90(picture, -turned // 90))
            frame = av.VideoFrame.from_ndarray(coded, format="rgb24")
            frame.pts, frame.time_base = timestamp, Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize("turned", [0, 90, 180, 270])
def test_rotated_clip_is_shown_upright(supervisor: EngineSupervisor, run_async: RunAsync[Any], turned: int) -> None:
    shown = [scene(motion, 240, 320) for motion in MOTIONS]
    videos = [encode_scene(one, 240, 320, timestamps=[*range(0, 240, 4)], turned=turned) for one in shown]
    jobs = [job for data in videos for job in video_jobs(data)]
    assert {(job.window.width, job.window.height) for job in jobs} == {(240, 320)}
    results = run_async(caption_all(supervisor, Recipe(), jobs, stages=(STAGE1,)))
    assert [done.row(STAGE1).caption for done in results] == [one.stage1 for one in shown]


def test_clip_of_variable_frame_rate_is_sampled_by_time(supervisor: EngineSupervisor, run_async: RunAsync[Any]) -> None:
    """Two thirds of the frames fall into the first tenth of the time."""
    timestamps = [*range(40), *range(40, 400, 18)]
    shown = [scene(motion, 320, 240, skip=1) for motion in MOTIONS]
    jobs = [job for one in shown for job in video_jobs(encode_scene(one, 320, 240, timestamps=timestamps))]
    results = run_async(caption_all(supervisor, Recipe(), jobs))
    assert [done.row(STAGE1).caption for done in results] == [one.stage1 for one in shown]
    for done in results:
        indices = done.row(STAGE1).frame_indices
        assert indices is not None
        steps = [timestamps[two] - timestamps[one] for one, two in pairwise(indices)]
        assert max(steps) - min(steps) <= 2 * 18


def test_each_window_of_a_changing_clip_has_its_own_caption(
    supervisor: EngineSupervisor, run_async: RunAsync[Any]
) -> None:
    scenes = [scene(motion, 320, 240, skip=2) for motion in MOTIONS]
    times = [number / (FRAMES - 1) for number in range(FRAMES)]
    rng = np.random.default_rng(0)
    pictures = [picture for one in scenes for picture in render(one, 320, 240, times, rng)]
    data = encode_frames(pictures, 320, 240, 24, "h264", 20)
    results = run_async(caption_all(supervisor, Recipe(), video_jobs(data, Windowing(FRAMES, FRAMES))))
    assert [done.row(STAGE1).caption for done in results] == [one.stage1 for one in scenes]
    assert [done.row(STAGE2).caption for done in results] == [one.stage2 for one in scenes]


def test_clip_that_exceeds_the_decode_timeout_fails_alone(
    supervisor: EngineSupervisor, run_async: RunAsync[Any]
) -> None:
    shown = scene("moves left", 320, 240)
    good = video_jobs(encode_scene(shown, 320, 240, timestamps=[*range(0, 240, 4)]))
    slow = video_jobs(slow_video())
    with Sandbox(SandboxLimits(seconds=3)) as sandbox:
        results = run_async(caption_all(supervisor, Recipe(), [*slow, *good], sandbox=sandbox))
    assert [done.row(STAGE1).error_kind for done in results] == ["too_slow", "too_slow", None]
    assert results[-1].row(STAGE1).caption == shown.stage1
