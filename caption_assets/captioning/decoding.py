"""Decoders of windows' frames, which run while the engine captions other windows."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Protocol, TypeVar

import numpy as np

from caption_assets.captioning.budget import FrameGrid
from caption_assets.captioning.window_job import WindowJob
from caption_assets.errors import UnreadableClip
from caption_assets.store.previews import Preview
from caption_assets.video.decode import Frames
from caption_assets.video.decode_in_worker import DecodedWindow, DecodePaused, decode_shared
from caption_assets.workers.sandbox import Sandbox
from caption_assets.workers.shared_memory import Buffer, ClipFile

T = TypeVar("T")
PAUSE_SHARE = 0.5
"""Share of the decode timeout after which a decode that has not reached its window pauses; another job resumes it."""
PREFETCH = 2
"""Windows in progress for each worker: one is decoded, the next one is read."""


class Decoder(Protocol):
    """Decodes windows."""

    async def frames(self, job: WindowJob, grid: FrameGrid) -> Frames:
        """The window's frames, in the number and size of ``grid``. Raises any error of the clip."""


@dataclass(slots=True)
class _OpenClip:
    """A clip with windows in progress."""

    reading: asyncio.Future[ClipFile] | None = None
    """The read of its bytes; None until it starts."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a window of a sequential clip is decoded."""
    is_sequential: bool = True
    """Whether each window waits for the previous one. True until the first window is decoded."""

    @asynccontextmanager
    async def after_previous(self) -> AsyncIterator[None]:
        """Wait for the previous windows while the clip is sequential."""
        async with AsyncExitStack() as stack:
            if self.is_sequential:
                await stack.enter_async_context(self.lock)
                if not self._is_still_sequential():
                    await stack.aclose()
            yield

    def _is_still_sequential(self) -> bool:
        return self.is_sequential


class SandboxDecoder:
    """Reads each clip once, in threads of this process, and decodes its windows in a sandbox's workers.

    A clip with few keyframes is sequential: one worker keeps it open and decodes its windows in order, in one pass.

    Args:
        sandbox: runs the workers.
        store_preview: starts to store a window's preview; without it no previews are made.
    """

    def __init__(self, sandbox: Sandbox, store_preview: Callable[[WindowJob, Preview], None] | None = None) -> None:
        self._sandbox = sandbox
        self._store_preview = store_preview
        self._max_clips = PREFETCH * sandbox.workers
        self._slots = asyncio.Semaphore(self._max_clips)
        self._threads = ThreadPoolExecutor(self._max_clips, "read")
        self._clips: OrderedDict[tuple[str, str, str], _OpenClip] = OrderedDict()

    def __enter__(self) -> SandboxDecoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Reads from a slow store must not delay the last checkpoint.
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def frames(self, job: WindowJob, grid: FrameGrid) -> Frames:
        """The window's frames."""
        clip = self._clip(job)
        async with clip.after_previous(), self._slots:
            return await self._decode(job, clip, grid)

    async def _decode(self, job: WindowJob, clip: _OpenClip, grid: FrameGrid) -> Frames:
        start, end = require(job.window.start_frame), require(job.window.end_frame)
        file = await self._file(job, clip)
        pixels = Buffer(grid.bytes)
        decode = partial(
            decode_shared,
            file.handle,
            pixels.handle,
            start,
            end,
            grid.frames,
            (grid.height, grid.width),
            pause_after=PAUSE_SHARE * self._sandbox.limits.seconds,
            with_preview=self._store_preview is not None,
        )
        # The serial, not the handle: the sandbox remembers affinities, and must not keep the clip's memory with them.
        decoded = await self._decode_resuming(decode, file.serial if clip.is_sequential else None)
        clip.is_sequential = decoded.is_sequential
        if self._store_preview and decoded.preview:
            self._store_preview(job, decoded.preview)
        array = np.frombuffer(pixels.memory, np.uint8).reshape(grid.frames, grid.height, grid.width, 3)
        return Frames(array, decoded.indices, decoded.fps, replaced=decoded.replaced, padded=decoded.padded)

    async def _decode_resuming(
        self, decode: Callable[[], DecodedWindow | DecodePaused], affinity: int | None
    ) -> DecodedWindow:
        """Decode a window in as many sandbox jobs as needed: its last keyframe may be half an hour before it."""
        position = -1
        while True:
            decoded = await self._sandbox.run_with_affinity(affinity, decode)
            if isinstance(decoded, DecodedWindow):
                return decoded
            if decoded.position <= position:
                raise UnreadableClip("too_slow", "the decoder makes no progress towards the window: shorten the clip")
            position = decoded.position

    def _clip(self, job: WindowJob) -> _OpenClip:
        """The clip of a window. A few clips are kept, since the windows of a clip are consecutive."""
        key = (job.shard, job.window.clip_key, job.window.content_tag)
        clip = self._clips.setdefault(key, _OpenClip())
        if len(self._clips) > self._max_clips:
            self._clips.popitem(last=False)
        return clip

    async def _file(self, job: WindowJob, clip: _OpenClip) -> ClipFile:
        """The clip's bytes."""
        if clip.reading is None:
            clip.reading = asyncio.get_running_loop().run_in_executor(self._threads, _read, job)
            # Retrieves the exception also after a cancellation; asyncio would log it otherwise.
            clip.reading.add_done_callback(lambda reading: reading.cancelled() or reading.exception())
        reading = clip.reading
        try:
            return await asyncio.shield(reading)
        except Exception:
            if clip.reading is reading:
                clip.reading = None  # the next attempt reads it again
            raise


def _read(job: WindowJob) -> ClipFile:
    file = ClipFile(job.window.bytes)
    for piece in job.read():
        file.append(piece)
    if not file.size:
        raise UnreadableClip("empty", "the file is empty")
    return file


def require(value: T | None) -> T:
    """Return a value that the manifest has for every readable window."""
    if value is None:
        raise ValueError("a readable window's row has no bounds or size: materialize clip_manifest again")
    return value
