"""Where a window's frames come from while the engine works on others."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Protocol, TypeVar

import numpy as np

from caption_assets.captioning.budget import FrameGrid
from caption_assets.captioning.task import Task
from caption_assets.clips.buffer import Buffer
from caption_assets.clips.container import UnreadableClip
from caption_assets.clips.decode import Frames
from caption_assets.clips.decode_shared import decode_shared
from caption_assets.clips.preview import Preview
from caption_assets.clips.sandbox import Sandbox

T = TypeVar("T")
AHEAD = 2
"""Windows read or decoded at once, for each worker: one being decoded, one being fetched."""


class Decoder(Protocol):
    """Gives windows' frames."""

    async def frames(self, task: Task, grid: FrameGrid) -> Frames:
        """The window's frames, as many and as large as ``grid`` says; raises whatever is wrong with the clip."""


class SandboxDecoder:
    """Reads clips in threads of this process, once for all windows of one, and decodes them in a sandbox's workers.

    Args:
        sandbox: its workers.
        keep_preview: if given, a preview is made of each window and kept by this.
    """

    def __init__(self, sandbox: Sandbox, keep_preview: Callable[[Task, Preview], None] | None = None) -> None:
        self._sandbox = sandbox
        self._keep_preview = keep_preview
        self._most = AHEAD * sandbox.workers
        self._room = asyncio.Semaphore(self._most)
        self._threads = ThreadPoolExecutor(self._most, "read")
        self._clips: OrderedDict[tuple[str, str, str], asyncio.Future[Buffer]] = OrderedDict()

    def __enter__(self) -> SandboxDecoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A stop does not wait for reads from a slow store: what is finished is to be saved first.
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def frames(self, task: Task, grid: FrameGrid) -> Frames:
        """The window's frames."""
        start, end = known(task.window.start_frame), known(task.window.end_frame)
        async with self._room:
            clip = await self._clip(task)
            pixels = Buffer(grid.bytes)
            shown = await self._sandbox.run(
                decode_shared,
                clip.handle,
                pixels.handle,
                start,
                end,
                grid.frames,
                (grid.height, grid.width),
                with_preview=self._keep_preview is not None,
            )
            if self._keep_preview and shown.preview:
                await asyncio.get_running_loop().run_in_executor(self._threads, self._keep_preview, task, shown.preview)
        array = np.frombuffer(pixels.memory, np.uint8).reshape(grid.frames, grid.height, grid.width, 3)
        return Frames(array, shown.indices, shown.fps, replaced=shown.replaced, padded=shown.padded)

    async def _clip(self, task: Task) -> Buffer:
        """The clip's bytes, kept for its other windows, which come next, and not for long."""
        key = (task.shard, task.window.clip_key, task.window.content_tag)
        reading = self._clips.get(key)
        if reading is None:
            reading = asyncio.get_running_loop().run_in_executor(self._threads, _read, task)
            self._clips[key] = reading
            if len(self._clips) > self._most:
                self._clips.popitem(last=False)
        try:
            return await asyncio.shield(reading)
        except Exception:
            self._clips.pop(key, None)  # another try reads it again
            raise


def _read(task: Task) -> Buffer:
    data = task.read()
    if not data:
        raise UnreadableClip("empty", "the file is empty")
    buffer = Buffer(len(data))
    buffer.memory[:] = data
    return buffer


def known(value: T | None) -> T:
    """A value that every readable window's row holds."""
    if value is None:
        raise ValueError("a readable window's row lacks its bounds or size: materialize clip_manifest again")
    return value
