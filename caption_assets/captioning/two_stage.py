"""The two-stage policy: each window's stage 2 follows its stage 1 at once, while many windows are under way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

from caption_assets.captioning.budget import fit
from caption_assets.captioning.engine import CaptionEngine, RequestRefused
from caption_assets.captioning.prompts import text_hash
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.request import Request
from caption_assets.clips.decode import Frames, decode
from caption_assets.clips.sampling import frame_count
from caption_assets.store.tables import CaptionRow, ManifestRow, Status

T = TypeVar("T")
IN_FLIGHT = 32
"""Windows under way at once: enough to keep the engine's batch full while others decode."""
DECODERS = 2
"""Windows decoded at once; decoding releases the interpreter lock."""


@dataclass(frozen=True, slots=True)
class Task:
    """One row of the manifest to be captioned."""

    window: ManifestRow
    read: Callable[[], bytes]
    """Fetches the clip."""
    stage1: CaptionRow | None = None
    """The stage-1 row, where that was made before and only stage 2 is wanted."""


@dataclass(frozen=True, slots=True)
class Captioned:
    """What came of a task."""

    stage1: CaptionRow
    stage2: CaptionRow | None
    """None where only stage 1 was wanted."""


async def caption(
    engine: CaptionEngine,
    recipe: Recipe,
    tasks: Sequence[Task],
    *,
    with_stage2: bool,
    on_done: Callable[[Captioned], None] = lambda _: None,
) -> list[Captioned]:
    """Caption every task's window, stage 1 unless the task brings it, then stage 2 if wanted.

    A window that fails gets a row that says why, and stops no other. ``on_done`` is called as each finishes.

    Returns:
        One result for each task, in the order of ``tasks``.

    Raises:
        EngineError: if the engine dies.
    """
    places = asyncio.Semaphore(IN_FLIGHT)
    with ThreadPoolExecutor(DECODERS, thread_name_prefix="decode") as decoders:
        captioner = _Captioner(engine, recipe, decoders, with_stage2)

        async def one(task: Task) -> Captioned:
            async with places:
                done = await captioner.run(task)
            on_done(done)
            return done

        try:
            async with asyncio.TaskGroup() as group:
                running = [group.create_task(one(task)) for task in tasks]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed  # the engine has died; every window says so
        return [task.result() for task in running]


class _Captioner:
    """One window at a time, start to end."""

    def __init__(self, engine: CaptionEngine, recipe: Recipe, decoders: ThreadPoolExecutor, with_stage2: bool) -> None:
        self._engine = engine
        self._recipe = recipe
        self._decoders = decoders
        self._with_stage2 = with_stage2

    async def run(self, task: Task) -> Captioned:
        """Both stages of one task."""
        if task.window.status is Status.FAILED:
            return self._without_frames(task, task.window.error_kind, task.window.error)
        if task.stage1 is not None and task.stage1.status is Status.FAILED:
            return self._without_frames(task, task.stage1.error_kind, task.stage1.error)
        try:
            loop = asyncio.get_running_loop()
            frames = await loop.run_in_executor(self._decoders, _frames, task, self._recipe)
        except Exception as error:  # whatever is wrong with one clip or its storage stops no other
            message = str(error) or type(error).__name__
            return self._without_frames(task, getattr(error, "kind", "unreadable"), message)
        stage1 = task.stage1 or await self._ask(1, task.window, frames, None)
        stage2 = await self._second(task.window, frames, stage1) if self._with_stage2 else None
        return Captioned(stage1, stage2)

    async def _second(self, window: ManifestRow, frames: Frames, stage1: CaptionRow) -> CaptionRow:
        if stage1.caption is None:
            return self._stage1_failed(window)
        return await self._ask(2, window, frames, stage1)

    async def _ask(self, stage: int, window: ManifestRow, frames: Frames, stage1: CaptionRow | None) -> CaptionRow:
        """One request to the engine, as a row."""
        first = stage1.caption if stage1 else None
        prompt = self._recipe.prompt
        row = replace(
            self._row(stage, window),
            frame_indices=frames.indices,
            frame_fps=frames.fps,
            frame_height=frames.pixels.shape[1],
            frame_width=frames.pixels.shape[2],
            attempts=1,
            fingerprint=self._recipe.fingerprint(stage, window, first),
            stage1_fingerprint=stage1.fingerprint if stage1 else None,
        )
        # The id covers the frames: another size or sampling of the same window must not meet the same cache entry.
        video_id = f"{window.window_id}-{self._recipe.version(1)}"
        instruction = prompt.stage1 if first is None else prompt.stage2_text(first)
        try:
            answer = await self._engine.complete(Request(video_id, frames, instruction), self._recipe.generation)
        except RequestRefused as error:
            return replace(row, error_kind="refused", error=str(error))
        return replace(
            row,
            status=Status.OK,
            caption=answer.text,
            finish_reason=answer.finish_reason,
            prompt_tokens=answer.prompt_tokens,
            cached_tokens=answer.cached_tokens,
            output_tokens=answer.output_tokens,
        )

    def _row(self, stage: int, window: ManifestRow) -> CaptionRow:
        """A failed row of this stage, to be filled in."""
        recipe = self._recipe
        return CaptionRow(
            clip_key=window.clip_key,
            window_index=window.window_index,
            window_id=window.window_id,
            start_seconds=window.start_seconds,
            end_seconds=window.end_seconds,
            status=Status.FAILED,
            model=recipe.variant.hub_id,
            revision=recipe.variant.revision,
            prompt_name=recipe.prompt.name,
            prompt_hash=text_hash(recipe.instruction(stage)),
            sampling=asdict(recipe.generation),
        )

    def _without_frames(self, task: Task, kind: str | None, message: str | None) -> Captioned:
        stage1 = task.stage1 or replace(self._row(1, task.window), error_kind=kind, error=message)
        if not self._with_stage2:
            return Captioned(stage1, None)
        if stage1.caption is None:
            return Captioned(stage1, self._stage1_failed(task.window))
        return Captioned(stage1, replace(self._row(2, task.window), error_kind=kind, error=message))

    def _stage1_failed(self, window: ManifestRow) -> CaptionRow:
        return replace(
            self._row(2, window),
            error_kind="stage1_failed",
            error="stage 1 has no caption for this window: see its row in stage1_captions",
        )


def _frames(task: Task, recipe: Recipe) -> Frames:
    """Read and decode a window's frames, as many and as large as the recipe's model takes."""
    window = task.window
    start, end = _known(window.start_frame), _known(window.end_frame)
    seconds = _known(window.end_seconds) - _known(window.start_seconds)
    wanted = frame_count(seconds, end - start, recipe.frames)
    grid = fit(wanted, _known(window.height), _known(window.width), recipe.variant.pixels)
    return decode(task.read(), start, end, grid.frames, (grid.height, grid.width))


def _known(value: T | None) -> T:
    """A value that every readable window's row holds."""
    if value is None:
        raise ValueError("a readable window's row lacks its bounds or size: materialize clip_manifest again")
    return value
