"""The captioner: runs window jobs through their stages, and retries failed requests with less video."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import count
from typing import Any

from caption_assets.captioning.admission import Admission
from caption_assets.captioning.budget import (
    FrameGrid,
    FrameTooNarrow,
    NoRoom,
    fewer_frames,
    fit,
    fit_context,
    fit_size,
    reductions,
    smaller_frames,
)
from caption_assets.captioning.decoding import Decoder, require
from caption_assets.captioning.engine import EngineError
from caption_assets.captioning.prefix_cache import CacheHits
from caption_assets.captioning.quality import CUT_OFF, REGENERATED, find_flags, replaces
from caption_assets.captioning.recipe import Recipe, SamplingParams
from caption_assets.captioning.request import (
    FINISH_LENGTH,
    REASONING_CUT_OFF,
    Completion,
    PoisonWindow,
    ReasoningCutOff,
    Request,
    RequestFailed,
)
from caption_assets.captioning.seen_video import SeenVideo
from caption_assets.captioning.stages import Stage
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.captioning.window_job import DECODE, JobStatus, WindowJob, upstream_failed_row
from caption_assets.errors import as_project_error
from caption_assets.store.tables import CaptionRow, ManifestRow, Status
from caption_assets.video.decode import Frames
from caption_assets.video.frame_sampling import frame_count

REGENERATION_TEMPERATURE = 0.7
REGENERATION_TOP_P = 0.95
"""Minimum values when a caption is regenerated: near-greedy sampling would repeat the first answer."""
STRONGER_PENALTY = 0.1
"""Added to the repetition penalty at each regeneration with greedy decoding."""
POISON_CRASHES = 3
"""Number of crashes after which a window counts as poison; see ``EngineSupervisor``."""
MAX_REASONING_ROOM = 8
"""Maximum output limit for an answer that is cut off while reasoning, as a multiple of the recipe's limit. Reasoning of
4,000 tokens is common."""
SPARE_TOKENS = 32
"""Margin in tokens: a caption can take more tokens inside a prompt than it took as an answer."""


@dataclass(frozen=True, slots=True)
class _Attempt:
    """An answer with its sampling parameters, video and flags."""

    answer: Completion
    generation: SamplingParams
    grid: FrameGrid
    frames: Frames
    flags: tuple[str, ...] = ()


async def caption(
    supervisor: EngineSupervisor,
    recipe: Recipe,
    decoder: Decoder,
    jobs: AsyncIterable[WindowJob],
    emit: Callable[[WindowJob], Awaitable[None]],
) -> None:
    """Caption windows concurrently on one engine. A window starts when the engine has room for it.

    A failed window gets rows with the error; the other windows continue.

    Args:
        supervisor: runs the engine.
        recipe: model, prompt and sampling. The engine must serve this model.
        decoder: decodes the windows' frames.
        jobs: read as the engine has room. The windows of a clip must be consecutive.
        emit: called with each finished job, in any order. An exception that it raises ends the run.

    Raises:
        EngineError: if the engine cannot be restarted.
    """
    admission = Admission(supervisor.engine.capacity)
    captioner = Captioner(supervisor, recipe, decoder)

    async def one(job: WindowJob) -> None:
        try:
            await captioner.run(job)
        except EngineError:
            raise
        except Exception as error:  # a bug must not stop the other windows
            logging.getLogger(__name__).exception(
                "captioning window %s of %s failed", job.window.window_id, job.window.clip_key
            )
            job.fail(recipe, "unexpected", str(as_project_error(error)))
        finally:
            admission.release(job.load)
        await emit(job)

    try:
        async with asyncio.TaskGroup() as group:
            async for job in jobs:
                await captioner.plan(job)
                await admission.acquire(job.load)
                job.status = JobStatus.RUNNING
                group.create_task(one(job))
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed  # the first one canceled the other tasks


class Captioner:
    """Captions windows independently: a failed window gets rows with the error, and the others continue."""

    def __init__(self, supervisor: EngineSupervisor, recipe: Recipe, decoder: Decoder) -> None:
        self._supervisor = supervisor
        self._recipe = recipe
        self._decoder = decoder
        self._replicas = count()

    async def plan(self, job: WindowJob) -> None:
        """Choose the number and size of a window's frames, or set the job's problem.

        Raises:
            EngineError: if no engine was started.
        """
        try:
            await self._plan(job)
        except RequestFailed as error:
            job.problem = error
        except FrameTooNarrow as error:
            job.problem = RequestFailed(error.kind, str(error))
        except EngineError:
            raise
        except Exception as error:  # an invalid row must not stop the other windows
            message = f"invalid row of the manifest: {type(error).__name__}: {error}"
            job.problem = RequestFailed("manifest", message)

    async def _plan(self, job: WindowJob) -> None:
        window, engine = job.window, self._supervisor.engine
        limits = engine.limits(self._recipe.variant.pixels)
        height, width = require(window.height), require(window.width)
        seconds = require(window.end_seconds) - require(window.start_seconds)
        frames = frame_count(seconds, require(window.end_frame) - require(window.start_frame), self._recipe.frames)
        whole = fit(frames, height, width, limits)
        planned = await self._fit_grid(job, job.missing[0], whole)
        video = await self._video_tokens(window, planned)
        reserved = {stage: self._reserved_tokens(window, stage) for stage in self._recipe.stages}
        text = max(reserved[stage] for stage in job.missing)
        job.wanted = FrameGrid(frames, *fit_size(height, width, limits, limits.max_pixels))
        job.whole, job.planned, job.grid = whole, planned, planned
        job.load = engine.load(planned, video, text + self._recipe.generation.max_output_tokens)
        # Over all stages, so that a caption does not depend on which of them the run captions.
        job.caption_room = (
            engine.context - video - max((reserved[stage] for stage in reserved if stage.needs), default=0)
        )

    def _reserved_tokens(self, window: ManifestRow, stage: Stage) -> int:
        """Maximum number of text tokens in a stage's prompt: each caption in it may be as long as the output limit."""
        text = self._text_tokens(window, stage, dict.fromkeys(stage.needs, ""))
        return text + len(stage.needs) * (self._recipe.generation.max_output_tokens + SPARE_TOKENS)

    def _text_tokens(self, window: ManifestRow, stage: Stage, captions: Mapping[str, str]) -> int:
        """Number of text tokens in a stage's prompt."""
        engine = self._supervisor.engine
        return engine.text_tokens(engine.render(self._recipe.instruction(stage, window, captions)))

    async def _video_tokens(self, window: ManifestRow, grid: FrameGrid) -> int:
        seconds = require(window.end_seconds) - require(window.start_seconds)
        return await self._supervisor.engine.video_tokens(grid, (grid.frames - 1) / seconds)

    async def _fit_grid(self, job: WindowJob, stage: Stage, grid: FrameGrid) -> FrameGrid:
        """The largest video, at most ``grid``, that fits the context with a stage's prompt and answer.

        The result depends on no other stage, so that it is the same whichever stages the run captions.

        Raises:
            RequestFailed: if two frames of the minimum size do not fit.
        """
        engine, answer = self._supervisor.engine, self._recipe.generation.max_output_tokens
        text = self._text_tokens(job.window, stage, job.captions(stage) or {})
        room = min(engine.context - text - answer, engine.max_video_tokens)
        limits = engine.limits(self._recipe.variant.pixels)
        try:
            return await fit_context(grid, limits, lambda grid: self._video_tokens(job.window, grid), room)
        except NoRoom as error:
            spare = engine.context - text - error.tokens
            remedy = (
                "shorten the prompt"
                if answer <= text or spare < 1
                else f"lower CAPTION_MAX_OUTPUT_TOKENS to {spare} or less"
            )
            raise RequestFailed(
                error.kind,
                f"stage {stage.number} has no room for the video: of the context of {engine.context} tokens its prompt "
                f"takes {text} and the answer {answer}, but two frames of the minimum size take {error.tokens}: "
                f"{remedy}",
            ) from error

    async def run(self, job: WindowJob) -> None:
        """Caption the missing stages of a planned job.

        Raises:
            EngineError: if the engine cannot be restarted.
        """
        job.replica = next(self._replicas)
        if job.problem is None:
            try:
                await self._decode(job)
            except RequestFailed as error:
                job.problem = error
        if job.problem:
            job.fail(self._recipe, job.problem.kind, str(job.problem))
        while missing := job.missing:
            stage = missing[0]
            captions = job.captions(stage)
            row = (
                upstream_failed_row(self._recipe, stage, job.window)
                if captions is None
                else await self._row(job, stage)
            )
            job.add_row(stage, row)

    async def _row(self, job: WindowJob, stage: Stage) -> CaptionRow:
        """The row of a stage, with a caption or an error."""
        recipe, tried = self._recipe, job.earlier_attempts.get(stage.name, 0)
        try:
            reduced = await self._fit_job(job, stage)
        except RequestFailed as error:
            row = job.blank_row(recipe, stage, reduced=True)
            return replace(row, error_kind=error.kind, error=str(error), attempts=tried + 1)
        try:
            best = await self._best_attempt(job, stage)
            if not best.answer.text:
                raise RequestFailed("empty_answer", "the model's answer was empty in every attempt")
        except RequestFailed as error:
            return replace(
                job.blank_row(recipe, stage, reduced=reduced, cut_off=error.kind == REASONING_CUT_OFF),
                engine_settings=self._supervisor.settings,
                error_kind=error.kind,
                error=str(error),
                attempts=tried + job.attempts[stage.name],
            )
        is_longer = best.generation.max_output_tokens > recipe.generation.max_output_tokens
        return replace(
            job.blank_row(
                recipe, stage, reduced=reduced, cut_off=best.answer.finish_reason == FINISH_LENGTH or is_longer
            ),
            engine_settings=self._supervisor.settings,
            status=Status.OK,
            caption=best.answer.text,
            finish_reason=best.answer.finish_reason,
            flags=best.flags,
            reductions=reductions(job.wanted, best.grid),
            sampling=asdict(best.generation),
            frames_replaced=best.frames.replaced,
            frames_padded=best.frames.padded,
            **_frame_columns(best),
            prompt_tokens=best.answer.prompt_tokens,
            cached_tokens=best.answer.cached_tokens,
            output_tokens=best.answer.output_tokens,
            attempts=tried + job.attempts[stage.name],
        )

    async def _fit_job(self, job: WindowJob, stage: Stage) -> bool:
        """Fit a job's video to a stage. Return whether the context is too small for the whole video.

        A video that was reduced after an earlier stage failed stays reduced: the larger one would fail again.

        Raises:
            RequestFailed: if two frames of the minimum size do not fit.
        """
        grid = await self._fit_grid(job, stage, job.whole)
        reduced = grid != job.whole
        if job.grid != job.planned:
            grid = await self._fit_grid(job, stage, job.grid)
        if grid != job.grid:
            job.set_grid(grid)
        return reduced

    async def _best_attempt(self, job: WindowJob, stage: Stage) -> _Attempt:
        """The best answer, regenerated while its flags require it and the recipe allows it.

        Only the first attempt reduces the video: a regeneration is not worth it, since the next stage would get the
        reduced video too.
        """
        recipe, engine = self._recipe, self._supervisor.engine
        generation = engine.resolve(recipe.generation)
        best: _Attempt | None = None
        for again in range(recipe.regenerations + 1):
            try:
                make_attempt = self._attempt_raising_limit if again else self._attempt_reducing_video
                attempt = await make_attempt(job, stage, generation)
            except RequestFailed:
                if best is None:
                    raise
                return best
            flags = find_flags(
                attempt.answer.text,
                finish_reason=attempt.answer.finish_reason,
                instruction=recipe.template(stage, job.window),
                neighbor=await job.previous.first_answer(stage) if job.previous else None,
            )
            attempt = replace(attempt, flags=flags)
            if best is None or _is_better(attempt, best):
                best = attempt
            is_needed = any(stage.name in later.needs for later in recipe.stages)
            room = job.caption_room if is_needed else engine.context - attempt.answer.prompt_tokens
            if REGENERATED.isdisjoint(flags) or (changed := self._regeneration_params(attempt, again, room)) is None:
                return best
            generation = changed
        assert best is not None  # there is at least one attempt
        return best

    def _regeneration_params(self, attempt: _Attempt, again: int, room: int) -> SamplingParams | None:
        """Sampling parameters after a flagged answer, with a higher limit if it was cut off; None if no retry helps."""
        first = self._supervisor.engine.resolve(self._recipe.generation)
        assert first.temperature is not None
        assert first.top_p is not None
        assert first.repetition_penalty is not None
        longer_limit = max(first.max_output_tokens, min(2 * first.max_output_tokens, room))
        limit = longer_limit if CUT_OFF in attempt.flags else first.max_output_tokens
        if REGENERATED.intersection(attempt.flags) == {CUT_OFF}:
            longer = limit > attempt.generation.max_output_tokens
            return replace(attempt.generation, max_output_tokens=limit) if longer else None
        if first.temperature == 0:  # keeps greedy decoding, which is deterministic
            penalty = first.repetition_penalty + (again + 1) * STRONGER_PENALTY
            return replace(first, repetition_penalty=penalty, max_output_tokens=limit)
        return replace(
            first,
            temperature=max(first.temperature, REGENERATION_TEMPERATURE),
            top_p=max(first.top_p, REGENERATION_TOP_P),
            max_output_tokens=limit,
        )

    async def _attempt_reducing_video(self, job: WindowJob, stage: Stage, generation: SamplingParams) -> _Attempt:
        """An answer; a failed request is retried with the videos of ``retry_grids``."""
        limits = self._supervisor.engine.limits(self._recipe.variant.pixels)
        failure: RequestFailed | None = None
        for number, grid in enumerate(retry_grids(job.grid, lambda grid: smaller_frames(grid, limits))):
            if number:
                job.set_grid(grid)
            try:
                attempt = await self._attempt_raising_limit(job, stage, generation)
            except PoisonWindow:
                raise
            except RequestFailed as error:
                job.set_answer(stage, None)
                limit = MAX_REASONING_ROOM * generation.max_output_tokens
                if isinstance(error, ReasoningCutOff) and error.output_tokens >= limit:
                    raise  # a smaller video does not raise this limit
                failure = error
                continue
            job.set_answer(stage, attempt.answer.text)
            return attempt
        assert failure is not None  # there is at least one grid
        raise failure

    async def _attempt_raising_limit(self, job: WindowJob, stage: Stage, generation: SamplingParams) -> _Attempt:
        """An answer; one that is cut off while reasoning is retried with twice the output limit.

        Raises:
            ReasoningCutOff: if the context is full, or ``MAX_REASONING_ROOM`` times the limit is not enough.
        """
        highest = MAX_REASONING_ROOM * generation.max_output_tokens
        while True:
            try:
                return await self._attempt(job, stage, generation)
            except ReasoningCutOff as cut_off:
                job.set_answer(stage, None)
                room = min(highest, self._supervisor.engine.context - cut_off.prompt_tokens)
                limit = min(2 * generation.max_output_tokens, room)
                if limit <= generation.max_output_tokens:
                    raise
                generation = replace(generation, max_output_tokens=limit)

    async def _attempt(self, job: WindowJob, stage: Stage, generation: SamplingParams) -> _Attempt:
        """The answer to one request with the job's current video."""
        instruction = self._recipe.instruction(stage, job.window, job.captions(stage) or {})
        frames = await self._decode(job)
        request = Request(
            video_id=self._video_id(job),
            frames=frames,
            prompt=self._supervisor.engine.render(instruction),
            generation=generation,
            stage=stage.number,
            is_cached=job.is_cached,
            replica=job.replica,
        )
        job.attempts[stage.name] += 1
        started = time.monotonic()
        try:
            answer = await self._supervisor.complete(request)
        except PoisonWindow:
            job.attempts[stage.name] += POISON_CRASHES - 1
            raise
        finally:
            job.seconds[stage.name] += time.monotonic() - started
        # Only the first request of a stage, with frames that an earlier stage has put into the cache.
        if request.is_cached and job.attempts[stage.name] == 1 and job.crashes == self._supervisor.crashes:
            hits = CacheHits(answer.cached_tokens, answer.cacheable_tokens, self._supervisor.engine.is_hybrid)
            job.hits += hits
        job.is_cached, job.crashes = True, self._supervisor.crashes
        return _Attempt(answer, generation, job.grid, frames)

    def _video_id(self, job: WindowJob) -> str:
        """The key of the engine's caches. It differs for another size or frame sampling of the same window."""
        grid, first = job.grid, self._recipe.stages[0]
        return f"{job.window.window_id}-{self._recipe.version(first)}-{grid.frames}x{grid.height}x{grid.width}"

    async def _decode(self, job: WindowJob) -> Frames:
        """The frames of the job's current video."""
        if job.frames is None:
            started = time.monotonic()
            try:
                job.frames = await self._decoder.frames(job, job.grid)
            except Exception as error:  # an unreadable clip must not stop the other windows
                raise RequestFailed(getattr(error, "kind", "unreadable"), str(error) or type(error).__name__) from error
            finally:
                job.seconds[DECODE] += time.monotonic() - started
        return job.frames


def retry_grids(grid: FrameGrid, smaller: Callable[[FrameGrid], FrameGrid]) -> Iterator[FrameGrid]:
    """The video of each attempt: the planned one twice, half its frames, and half its frames at a smaller size."""
    yield grid
    yield grid
    yield fewer_frames(grid)
    yield smaller(fewer_frames(grid))


def _frame_columns(attempt: _Attempt) -> dict[str, Any]:
    """The columns of a row about the frames that the model saw; null where its processor does not return them."""
    frames, seen = attempt.frames, attempt.answer.seen_video
    if seen is None:
        seen = SeenVideo(tuple(range(attempt.grid.frames)), attempt.grid.height, attempt.grid.width)
    size = {"frame_height": seen.height, "frame_width": seen.width}
    if (kept := seen.positions) is None:
        return {**size, "frame_indices": None, "frame_fps": None}
    fps = frames.fps * (len(kept) - 1) / (kept[-1] - kept[0]) if len(kept) > 1 else None
    return {**size, "frame_indices": tuple(frames.indices[position] for position in kept), "frame_fps": fps}


def _is_better(attempt: _Attempt, best: _Attempt) -> bool:
    """Whether a later attempt replaces the best one so far. Of two cut-off answers the longer one is better."""
    if attempt.flags == best.flags and CUT_OFF in attempt.flags:
        return attempt.generation.max_output_tokens > best.generation.max_output_tokens
    return replaces(attempt.answer.text, attempt.flags, best.answer.text, best.flags)
