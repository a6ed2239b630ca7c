"""Tests of clips with few keyframes: one pass over a clip decodes all its windows in one worker."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace

import numpy as np
import pytest

from caption_assets.captioning import decoding
from caption_assets.captioning.budget import FrameGrid
from caption_assets.captioning.decoding import SandboxDecoder
from caption_assets.captioning.window_job import WindowJob
from caption_assets.errors import UnreadableClip
from caption_assets.video.decode import Frames
from caption_assets.video.window import Windowing
from caption_assets.workers.sandbox import Sandbox
from tests.captioning.window_jobs import video_jobs
from tests.videos import decode, moving_video

GRID = FrameGrid(4, 56, 84)
FRAMES = 1200
ONE_GROUP = {"x264-params": "keyint=infinite:scenecut=0:bframes=2:threads=1", "preset": "ultrafast"}


@pytest.fixture(scope="module")
def video() -> bytes:
    return moving_video(FRAMES, size=(96, 64), options=ONE_GROUP)


@pytest.fixture(scope="module")
def jobs(video: bytes) -> list[WindowJob]:
    return video_jobs(video, Windowing(100, 50))


def expected(video: bytes, job: WindowJob) -> Frames:
    assert job.window.start_frame is not None
    assert job.window.end_frame is not None
    return decode(video, job.window.start_frame, job.window.end_frame, GRID.frames, (GRID.height, GRID.width))


def all_frames(jobs: list[WindowJob], sandbox: Sandbox) -> list[Frames]:
    async def gather() -> list[Frames]:
        with SandboxDecoder(sandbox) as decoder:
            return await asyncio.gather(*(decoder.frames(job, GRID) for job in jobs))

    return asyncio.run(gather())


def test_windows_decoded_concurrently_equal_windows_decoded_alone(video: bytes, jobs: list[WindowJob]) -> None:
    with Sandbox(workers=2) as sandbox:
        found = all_frames(jobs, sandbox)
    for job, frames in zip(jobs, found, strict=True):
        single = expected(video, job)
        assert frames.indices == single.indices
        assert np.array_equal(frames.pixels, single.pixels)


def test_killed_worker_loses_no_window(video: bytes, jobs: list[WindowJob]) -> None:
    async def with_a_kill(sandbox: Sandbox) -> list[Frames]:
        with SandboxDecoder(sandbox) as decoder:
            found = [await decoder.frames(job, GRID) for job in jobs[:3]]
            os.kill(await sandbox.run(os.getpid), signal.SIGKILL)
            return found + [await decoder.frames(job, GRID) for job in jobs[3:5]]

    with Sandbox(workers=1) as sandbox:
        found = asyncio.run(with_a_kill(sandbox))
    assert all(
        np.array_equal(frames.pixels, expected(video, job).pixels) for frames, job in zip(found, jobs[:5], strict=True)
    )


def test_late_window_is_decoded_in_several_jobs(
    video: bytes, jobs: list[WindowJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "PAUSE_SHARE", 1e-6)
    with Sandbox(workers=1) as sandbox:
        [frames] = all_frames([jobs[4]], sandbox)
    assert np.array_equal(frames.pixels, expected(video, jobs[4]).pixels)


def test_window_requested_again_is_decoded_again(video: bytes, jobs: list[WindowJob]) -> None:
    with Sandbox(workers=1) as sandbox:
        found = all_frames([jobs[5], jobs[2], jobs[5]], sandbox)
    for job, frames in zip([jobs[5], jobs[2], jobs[5]], found, strict=True):
        assert np.array_equal(frames.pixels, expected(video, job).pixels)


def test_unreadable_clip_fails_its_windows_and_delays_no_other_clip(jobs: list[WindowJob]) -> None:
    broken = [replace(job, read=lambda: [b"<html>"]) for job in jobs[:3]]

    async def mixed(sandbox: Sandbox) -> list[Frames | BaseException]:
        with SandboxDecoder(sandbox) as decoder:
            others = [replace(job, shard="other") for job in jobs[:2]]
            return await asyncio.gather(
                *(decoder.frames(job, GRID) for job in [*broken, *others]), return_exceptions=True
            )

    with Sandbox(workers=2) as sandbox:
        found = asyncio.run(mixed(sandbox))
    assert [isinstance(each, UnreadableClip) for each in found] == [True] * 3 + [False] * 2
