"""Where a window's frames come from while the engine works on others."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Protocol, TypeVar

from caption_assets.captioning.budget import FrameGrid
from caption_assets.captioning.task import Task
from caption_assets.clips.decode import Frames, decode

T = TypeVar("T")
MOST_THREADS = 8
"""More would outrun any engine: a thread decodes several windows a second."""


class Decoder(Protocol):
    """Gives windows' frames."""

    async def frames(self, task: Task, grid: FrameGrid) -> Frames:
        """The window's frames, as many and as large as ``grid`` says; raises whatever is wrong with the clip."""


class ThreadDecoder:
    """Reads and decodes in threads of this process: PyAV releases the interpreter's lock."""

    def __init__(self) -> None:
        count = min(os.cpu_count() or 1, MOST_THREADS)
        self._threads = ThreadPoolExecutor(count, "decode", initializer=_resize_alone)

    def __enter__(self) -> ThreadDecoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(cancel_futures=True)

    async def frames(self, task: Task, grid: FrameGrid) -> Frames:
        """The window's frames."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, _decode, task, grid)


def _resize_alone() -> None:
    """Keep torch from spreading this thread's resizes over threads of its own, for twice the CPU time."""
    import torch

    torch.set_num_threads(1)


def _decode(task: Task, grid: FrameGrid) -> Frames:
    start, end = known(task.window.start_frame), known(task.window.end_frame)
    return decode(task.read(), start, end, grid.frames, (grid.height, grid.width))


def known(value: T | None) -> T:
    """A value that every readable window's row holds."""
    if value is None:
        raise ValueError("a readable window's row lacks its bounds or size: materialize clip_manifest again")
    return value
