"""Captioning of some windows of a shard under any recipe. Stored captions are reused, and nothing is written."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial

from caption_assets.captioning.captioner import caption
from caption_assets.captioning.decoding import SandboxDecoder
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.reuse import EarlierRows, Reuse
from caption_assets.captioning.stages import Stage
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.captioning.window_job import JobStatus, StageRow, WindowJob
from caption_assets.errors import number_of
from caption_assets.sources.manifest import clip_pieces
from caption_assets.store.previews import Preview
from caption_assets.store.root import Root
from caption_assets.store.tables import CaptionFile, ManifestRow
from caption_assets.video.decode_in_worker import load_decoder
from caption_assets.workers.sandbox import Sandbox

PROGRESS_SECONDS = 10.0
"""Interval between two messages about the progress."""

OpenEngine = Callable[[Recipe], AbstractAsyncContextManager[EngineSupervisor]]
Report = Callable[[str], None]
"""Receives messages about the progress."""


class SampleRun:
    """Captions windows of a shard, each model's stages on one engine.

    Args:
        windows: readable windows, in the manifest's order.
        source: the source of the clips.
        earlier: stored captions. Those with a current fingerprint are reused.
        sandbox: decodes the windows.
        open_engine: opens the engine of a recipe's model. Called only if a window needs it.
        report: receives messages about the progress.
    """

    def __init__(
        self,
        windows: Sequence[ManifestRow],
        source: Root,
        earlier: Sequence[CaptionFile],
        sandbox: Sandbox,
        open_engine: OpenEngine,
        report: Report,
    ) -> None:
        self._windows = windows
        self._source = source
        self._earlier = earlier
        self._sandbox = sandbox
        self._open_engine = open_engine
        self._report = report
        self.rows: list[Mapping[str, StageRow]] = [{} for _ in windows]
        """For each window the rows so far, by stage."""
        self.previews: dict[str, Preview] = {}
        """Previews of the windows that were decoded, by window id."""

    async def caption(self, recipe: Recipe, stages: tuple[Stage, ...]) -> None:
        """Caption the windows in stages of one model. Those that they need have rows, or are among them.

        Args:
            recipe: the recipe of the model.
            stages: the stages, in the recipe's order.

        Raises:
            EngineError: if the engine does not start or cannot be restarted.
        """
        jobs = self._jobs(recipe, stages)
        if unfinished := [job for job in jobs if job.status is not JobStatus.FINISHED]:
            await self._run(recipe, unfinished)
        self.rows = [job.rows for job in jobs]

    def _jobs(self, recipe: Recipe, stages: tuple[Stage, ...]) -> list[WindowJob]:
        reuse = Reuse(recipe, max_attempts=1, earlier=EarlierRows(self._earlier), engine_settings="")
        jobs: list[WindowJob] = []
        for number, (window, rows) in enumerate(zip(self._windows, self.rows, strict=True)):
            read = partial(clip_pieces, self._source, window)
            job = WindowJob(window, read, stages, number=number, rows=dict(rows))
            if jobs and jobs[-1].window.end_frame == window.start_frame:  # a run compares adjacent windows alone
                job.set_previous(jobs[-1])
            reuse.resolve(job)
            jobs.append(job)
        return jobs

    async def _run(self, recipe: Recipe, jobs: Sequence[WindowJob]) -> None:
        if any(stage.video for stage in jobs[0].stages):
            self._sandbox.start(load_decoder)  # while the engine starts
        self._report(f"starting the engine for {recipe.variant.hub_id}")
        async with self._open_engine(recipe) as supervisor:
            self._report(f"captioning {number_of(len(jobs), 'window')}")
            progress = _Progress(len(jobs), self._report, time.monotonic())
            with SandboxDecoder(self._sandbox, self._keep_preview) as decoder:
                await caption(supervisor, recipe, decoder, _stream(jobs), progress.count)

    def _keep_preview(self, job: WindowJob, preview: Preview) -> None:
        self.previews[job.window.window_id] = preview


async def _stream(jobs: Sequence[WindowJob]) -> AsyncIterator[WindowJob]:
    for job in jobs:
        yield job


@dataclass(slots=True)
class _Progress:
    """Counts finished windows, and reports their number at intervals."""

    windows: int
    report: Report
    reported_at: float
    done: int = 0

    async def count(self, _: WindowJob) -> None:
        self.done += 1
        if time.monotonic() - self.reported_at >= PROGRESS_SECONDS:
            self.reported_at = time.monotonic()
            self.report(f"{self.done} of {number_of(self.windows, 'window')} finished")
