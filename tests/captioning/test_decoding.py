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
from caption_assets.store.span import Span
from caption_assets.video.decode import decode
from caption_assets.video.preview import Preview
from caption_assets.video.window import Windowing
from tests.captioning.tasks import film_tasks
from tests.conftest import SANDBOX, Truth

CASES = Path(__file__).parent.parent / "video" / "cases"
GRID = FrameGrid(6, 56, 84)


@pytest.fixture(scope="module")
def film(sample_data: Path, truth: Truth) -> bytes:
    """Of more than one window."""
    name = next(name for name, windows in truth["sample-folder"].items() if len(windows) > 1)
    path = sample_data / "shards" / "sample-folder" / name
    return Span(f"file://{path}", 0, path.stat().st_size).read()


@pytest.fixture(scope="module")
def tasks(film: bytes) -> list[WindowJob]:
    return film_tasks(film, Windowing(24, 12))


def test_frames_out_of_a_worker_are_those_of_a_decode_in_this_process(film: bytes, tasks: list[WindowJob]) -> None:
    async def all_frames() -> None:
        with SandboxDecoder(SANDBOX) as decoder:
            for task in tasks:
                window = task.window
                frames = await decoder.frames(task, GRID)
                assert window.start_frame is not None
                assert window.end_frame is not None
                here = decode(film, window.start_frame, window.end_frame, 6, (56, 84))
                assert np.array_equal(frames.pixels, here.pixels)
                assert (frames.indices, frames.fps) == (here.indices, here.fps)

    assert len(tasks) > 2
    asyncio.run(all_frames())


def test_frames_of_another_shape_than_the_clips_are_counted() -> None:
    task = film_tasks((CASES / "turn.webm").read_bytes(), Windowing(256, 128))[0]

    async def padded() -> int:
        with SandboxDecoder(SANDBOX) as decoder:
            return (await decoder.frames(task, GRID)).padded

    assert asyncio.run(padded()) == 3


def test_a_clip_is_read_once_for_all_its_windows(film: bytes, tasks: list[WindowJob]) -> None:
    reads: list[int] = []

    def read() -> list[bytes]:
        reads.append(1)
        return [film]

    async def all_frames() -> None:
        with SandboxDecoder(SANDBOX) as decoder:
            await asyncio.gather(*(decoder.frames(replace(task, read=read), GRID) for task in tasks))

    asyncio.run(all_frames())
    assert len(reads) == 1


def test_a_clip_that_could_not_be_read_is_read_again_at_the_next_try(film: bytes, tasks: list[WindowJob]) -> None:
    answers: list[bytes | OSError] = [OSError("the store is away"), film]

    def read() -> list[bytes]:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return [answer]

    async def two_tries() -> None:
        task = replace(tasks[0], read=read)
        with SandboxDecoder(SANDBOX) as decoder:
            with pytest.raises(OSError, match="away"):
                await decoder.frames(task, GRID)
            assert (await decoder.frames(task, GRID)).pixels.shape == (6, 56, 84, 3)

    asyncio.run(two_tries())


def test_an_empty_or_broken_clip_is_an_error_of_its_own(film: bytes, tasks: list[WindowJob]) -> None:
    async def kinds() -> list[str]:
        found = []
        for data in (b"", b"<html>no such clip</html>", film[: len(film) // 3]):
            with SandboxDecoder(SANDBOX) as decoder:
                with pytest.raises(UnreadableClip) as error:
                    await decoder.frames(replace(tasks[-1], read=lambda data=data: [data]), GRID)  # type: ignore[misc]
                found.append(error.value.kind)
        return found

    assert asyncio.run(kinds()) == ["empty", "text", "damaged"]


def test_each_window_gets_a_preview_where_one_is_wanted(tasks: list[WindowJob]) -> None:
    kept: dict[str, Preview] = {}

    async def all_frames() -> None:
        with SandboxDecoder(SANDBOX, lambda task, preview: kept.update({task.window.window_id: preview})) as decoder:
            await asyncio.gather(*(decoder.frames(task, GRID) for task in tasks))

    asyncio.run(all_frames())
    assert kept.keys() == {task.window.window_id for task in tasks}
    assert all(preview.animation.startswith(b"RIFF") for preview in kept.values())
    assert all(preview.poster.startswith(b"\xff\xd8") for preview in kept.values())
