"""Captioning of clips without a shard: they are probed, and their windows captioned, on one engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from caption_assets.captioning.captioner import caption
from caption_assets.captioning.decoding import SandboxDecoder
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.stages import Stage
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.captioning.threads import in_thread
from caption_assets.captioning.window_job import WindowJob
from caption_assets.library.rows import WindowCaption, caption_of, unreadable
from caption_assets.sources.clip import Clip
from caption_assets.sources.manifest import ProbedClip, clip_pieces, probe_listed
from caption_assets.store.access import Access
from caption_assets.store.root import Root
from caption_assets.store.tables import ManifestRow, Status
from caption_assets.video.decode_in_worker import load_decoder
from caption_assets.video.window import Windowing
from caption_assets.workers.sandbox import Sandbox

Emit = Callable[[WindowCaption], None]


@dataclass(frozen=True, slots=True)
class CaptionCall:
    """The settings of a call."""

    recipe: Recipe
    stages: Sequence[Stage]
    """Stages to caption, in the recipe's order, with all that they need."""
    shown: Sequence[Stage]
    """Stages whose rows are wanted."""
    windowing: Windowing
    access: Access
    """Access to object storage."""
    sandbox: Sandbox
    engine: Callable[[], Awaitable[EngineSupervisor]]
    """Starts the engine, or returns the running one. Called only if a window needs it."""

    async def run(self, clips: Iterable[Clip], emit: Emit) -> None:
        """Caption clips.

        Args:
            clips: the clips. They are probed as the engine has room.
            emit: called with each row, in the order of the clips, windows and stages, as soon as it and the rows
                before it are finished.

        Raises:
            EngineError: if the engine does not start or cannot be restarted.
        """
        rows = _InOrder(emit)
        jobs = self._jobs(probe_listed(self.sandbox, clips, self.windowing), rows)
        if (first := await anext(jobs, None)) is None:
            return

        async def finish(job: WindowJob) -> None:
            rows.add(job.number, [caption_of(job, stage) for stage in self.shown])

        self.sandbox.start(load_decoder)  # while the engine starts
        engine = await self.engine()
        with SandboxDecoder(self.sandbox) as decoder:
            await caption(engine, self.recipe, decoder, _chain(first, jobs), finish)

    async def _jobs(self, probed: Iterator[ProbedClip], rows: _InOrder) -> AsyncIterator[WindowJob]:
        """The windows of all clips. The rows of unreadable clips are added at once."""
        anywhere = Root.open("/", self.access)
        number = 0
        while (clip := await in_thread(next, probed, None)) is not None:
            previous = None
            for row in clip.rows:
                if row.status is Status.FAILED:
                    rows.add(number, [unreadable(row)])
                else:
                    previous = self._job(row, number, previous, anywhere)
                    yield previous
                number += 1

    def _job(self, row: ManifestRow, number: int, previous: WindowJob | None, source: Root) -> WindowJob:
        # Rows of this module have whole URLs, so that any root finds them.
        job = WindowJob(row, partial(clip_pieces, source, row), tuple(self.stages), number=number)
        job.set_previous(previous)
        return job


class _InOrder:
    """Emits the rows of windows in the order of the windows' numbers."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._next = 0
        self._waiting: dict[int, list[WindowCaption]] = {}

    def add(self, number: int, rows: list[WindowCaption]) -> None:
        """Add the rows of a window, and emit those that no earlier window holds back."""
        self._waiting[number] = rows
        while (ready := self._waiting.pop(self._next, None)) is not None:
            self._next += 1
            for row in ready:
                self._emit(row)


async def _chain(first: WindowJob, others: AsyncIterator[WindowJob]) -> AsyncIterator[WindowJob]:
    yield first
    async for job in others:
        yield job
