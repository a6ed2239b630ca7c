"""A session: worker processes and an engine, in an event loop of its own thread, for many calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from queue import SimpleQueue
from weakref import WeakSet

from caption_assets.captioning.loop_thread import LoopThread
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.stages import Stage
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.library.rows import WindowCaption
from caption_assets.library.run import CaptionCall
from caption_assets.sources.clip import Clip
from caption_assets.store.access import STANDARD, Access
from caption_assets.video.window import Windowing
from caption_assets.workers.sandbox import Sandbox

OpenEngine = Callable[[], AbstractAsyncContextManager[EngineSupervisor]]
CLOSED = "the captioner was closed during this call"


class Session:
    """Captions clips on one engine, which starts with the first window and runs until ``close``.

    Args:
        recipe: model, stages and sampling.
        open_engine: opens the engine of the recipe's model.
        windowing: sizes of windows.
        sandbox: probes and decodes clips. It ends with the session.
        access: access to object storage.
    """

    def __init__(
        self,
        recipe: Recipe,
        open_engine: OpenEngine,
        windowing: Windowing,
        sandbox: Sandbox,
        access: Access = STANDARD,
    ) -> None:
        self._recipe = recipe
        self._open_engine = open_engine
        self._windowing = windowing
        self._sandbox = sandbox
        self._access = access
        self._loop = LoopThread("caption-assets")
        self._stack = AsyncExitStack()
        self._starting = asyncio.Lock()
        self._engine: EngineSupervisor | None = None
        self._tasks: WeakSet[asyncio.Task[None]] = WeakSet()
        self._is_closed = False

    def caption(self, clips: Iterable[Clip], stage: Stage | None = None) -> Iterator[WindowCaption]:
        """Caption clips; see ``Captioner.caption``. Closing the iterator stops the call, and not the engine."""
        stages, shown = self._recipe.own_stages, self._recipe.own_stages
        if stage:
            stages, shown = (*self._recipe.graph.upstream(stage), stage), (stage,)
        call = CaptionCall(
            self._recipe, stages, shown, self._windowing, self._access, self._sandbox, self._running_engine
        )
        if self._is_closed:  # the iterator was made before
            raise RuntimeError(CLOSED)
        rows: SimpleQueue[WindowCaption | None] = SimpleQueue()
        task = self._loop.start(call.run(clips, rows.put), lambda _: rows.put(None))
        self._tasks.add(task)
        try:
            while (row := rows.get()) is not None:
                yield row
            if task.cancelled():
                raise RuntimeError(CLOSED)
            task.result()
        finally:
            self._loop.cancel(task)

    def close(self) -> None:
        """Stop the calls in progress, the engine and the workers."""
        if not self._is_closed:
            self._is_closed = True
            self._loop.run(self._stop())
            self._loop.stop()
            self._sandbox.__exit__(None, None, None)

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()

    async def _running_engine(self) -> EngineSupervisor:
        async with self._starting:
            if self._engine is None:
                self._engine = await self._stack.enter_async_context(self._open_engine())
            return self._engine
