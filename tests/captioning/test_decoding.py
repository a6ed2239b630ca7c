from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from caption_assets.captioning.budget import FrameGrid
from caption_assets.captioning.decoding import SandboxDecoder
from caption_assets.captioning.window_job import WindowJob
from caption_assets.errors import UnreadableClip
from caption_assets.store.previews import Preview
from caption_assets.store.span import Span
from caption_assets.video.window import Windowing
from tests.captioning.window_jobs import video_jobs
from tests.conftest import SANDBOX, Truth
from tests.videos import decode

CASES = Path(__file__).parent.parent / "video" / "cases"
GRID = FrameGrid(6, 56, 84)


@pytest.fixture(scope="module")
def video(sample_data: Path, truth: Truth) -> bytes:
    """A clip of more than one window."""
    name = next(name for name, windows in truth["sample-folder"].items() if len(windows) > 1)
    path = sample_data / "shards" / "sample-folder" / name
    return Span(f"file://{path}", 0, path.stat().st_size).read()


@pytest.fixture(scope="module")
def jobs(video: bytes) -> list[WindowJob]:
    return video_jobs(video, Windowing(24, 12))


def test_frames_from_a_worker_equal_frames_decoded_in_process(video: bytes, jobs: list[WindowJob]) -> None:
    async def all_frames() -> None:
        with SandboxDecoder(SANDBOX) as decoder:
            for job in jobs:
                window = job.window
                frames = await decoder.frames(job, GRID)
                assert window.start_frame is not None
                assert window.end_frame is not None
                here = decode(video, window.start_frame, window.end_frame, 6, (56, 84))
                assert np.array_equal(frames.pixels, here.pixels)
                assert (frames.indices, frames.fps) == (here.indices, here.fps)

    assert len(jobs) > 2
    asyncio.run(all_frames())


def test_padded_frames_are_counted() -> None:
    job = video_jobs((CASES / "turn.webm").read_bytes(), Windowing(256, 128))[0]

    async def padded() -> int:
        with SandboxDecoder(SANDBOX) as decoder:
            return (await decoder.frames(job, GRID)).padded

    assert asyncio.run(padded()) == 3


def test_clip_is_read_once_for_all_its_windows(video: bytes, jobs: list[WindowJob]) -> None:
    reads: list[int] = []

    def read() -> list[bytes]:
        reads.append(1)
        return [video]

    async def all_frames() -> None:
        with SandboxDecoder(SANDBOX) as decoder:
            await asyncio.gather(*(decoder.frames(replace(job, read=read), GRID) for job in jobs))

    asyncio.run(all_frames())
    assert len(reads) == 1


def test_failed_read_of_a_clip_is_retried_by_the_next_request(video: bytes, jobs: list[WindowJob]) -> None:
    answers: list[bytes | OSError] = [OSError("the store is unreachable"), video]

    def read() -> list[bytes]:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return [answer]

    async def two_tries() -> None:
        job = replace(jobs[0], read=read)
        with SandboxDecoder(SANDBOX) as decoder:
            with pytest.raises(OSError, match="unreachable"):
                await decoder.frames(job, GRID)
            assert (await decoder.frames(job, GRID)).pixels.shape == (6, 56, 84, 3)

    asyncio.run(two_tries())


def test_invalid_clip_raises_an_error_of_its_kind(video: bytes, jobs: list[WindowJob]) -> None:
    async def kinds() -> list[str]:
        found = []
        for data in (b"", b"<html>no such clip</html>", video[: len(video) // 3]):
            with SandboxDecoder(SANDBOX) as decoder:
                with pytest.raises(UnreadableClip) as error:
                    await decoder.frames(replace(jobs[-1], read=lambda data=data: [data]), GRID)  # type: ignore[misc]
                found.append(error.value.kind)
        return found

    assert asyncio.run(kinds()) == ["empty", "text", "damaged"]


def test_each_window_has_a_preview(jobs: list[WindowJob]) -> None:
    kept: dict[str, Preview] = {}

    async def all_frames() -> None:
        with SandboxDecoder(SANDBOX, lambda job, preview: kept.update({job.window.window_id: preview})) as decoder:
            await asyncio.gather(*(decoder.frames(job, GRID) for job in jobs))

    asyncio.run(all_frames())
    assert kept.keys() == {job.window.window_id for job in jobs}
    assert all(preview.jpeg.startswith(b"\xff\xd8") for preview in kept.values())
