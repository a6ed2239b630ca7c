"""One stage of one window: its requests, retries and regenerations, which end in a row."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from caption_assets.captioning.budget import FrameGrid, fewer_frames, reductions, smaller_frames
from caption_assets.captioning.decoding import Decoder
from caption_assets.captioning.gathering import Gathering
from caption_assets.captioning.output import JsonOutput
from caption_assets.captioning.planner import Planner
from caption_assets.captioning.prefix_cache import CacheHits
from caption_assets.captioning.quality import CUT_OFF, REGENERATED, find_flags, replaces
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.request import (
    FINISH_LENGTH,
    INVALID_JSON,
    JSON_CUT_OFF,
    REASONING_CUT_OFF,
    AnswerCutOff,
    Completion,
    JsonCutOff,
    PoisonWindow,
    Request,
    RequestFailed,
)
from caption_assets.captioning.sampling import SamplingParams
from caption_assets.captioning.seen_video import SeenVideo
from caption_assets.captioning.stages import Stage
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.captioning.window_job import DECODE, JobVideo, WindowJob, upstream_failed_row
from caption_assets.store.tables import CaptionRow, Status
from caption_assets.video.decode import Frames

REGENERATION_TEMPERATURE = 0.7
REGENERATION_TOP_P = 0.95
"""Minimum values when a caption is regenerated: near-greedy sampling would repeat the first answer."""
STRONGER_PENALTY = 0.1
"""Added to the repetition penalty at each regeneration with greedy decoding."""
POISON_CRASHES = 3
"""Number of crashes after which a window counts as poison; see ``EngineSupervisor``."""
MAX_CUT_OFF_ROOM = 8
"""Maximum output limit for reasoning or JSON that is cut off, as a multiple of the recipe's limit. Reasoning of 4,000
tokens is common."""


@dataclass(frozen=True, slots=True)
class _Attempt:
    """An answer with its sampling parameters, video and flags."""

    answer: Completion
    generation: SamplingParams
    grid: FrameGrid
    frames: Frames | None
    flags: tuple[str, ...] = ()


class StageRun:
    """Makes the row of one stage of a planned window, whose needed stages have rows."""

    def __init__(
        self,
        supervisor: EngineSupervisor,
        recipe: Recipe,
        decoder: Decoder,
        planner: Planner,
        gathering: Gathering,
        job: WindowJob,
        stage: Stage,
    ) -> None:
        self._supervisor = supervisor
        self._recipe = recipe
        self._decoder = decoder
        self._planner = planner
        self._gathering = gathering
        self._job = job
        self._stage = stage
        self._params = recipe.params(stage)

    async def row(self) -> CaptionRow:
        """The row, with an answer or an error.

        Raises:
            EngineError: if the engine cannot be restarted.
        """
        job, stage = self._job, self._stage
        if job.texts(stage) is None:
            return upstream_failed_row(self._recipe, stage, job)
        if job.problem and (stage.video or job.problem.kind == "manifest"):
            return job.failed_row(self._recipe, stage, job.problem.kind, str(job.problem))
        try:
            whole = await self._planner.fit(job, stage, job.whole)
            if (start := job.start(stage)) != job.whole:
                job.reduced[stage.name] = start
            grid = await self._planner.fit(job, stage, start)
            if stage.video:
                await self._frames(job.show(stage, grid))
        except RequestFailed as error:
            return job.failed_row(self._recipe, stage, error.kind, str(error))
        await self._gathering.start(job)
        return await self._request_row(grid, is_reduced=whole != job.whole and stage.video)

    async def _request_row(self, grid: FrameGrid, *, is_reduced: bool) -> CaptionRow:
        """The row from the requests with a video of at most this size.

        Args:
            grid: the video of the first request.
            is_reduced: whether the context is too small for the whole video.
        """
        recipe, job, stage = self._recipe, self._job, self._stage
        tried = job.earlier_attempts.get(stage.name, 0)
        try:
            best = await self._best_attempt(grid)
            if not best.answer.text:
                raise RequestFailed("empty_answer", "the model's answer was empty in every attempt")
        except RequestFailed as error:
            return replace(
                job.blank_row(
                    recipe, stage, reduced=is_reduced, cut_off=error.kind in (REASONING_CUT_OFF, JSON_CUT_OFF)
                ),
                engine_settings=self._supervisor.settings,
                error_kind=error.kind,
                error=str(error),
                attempts=tried + job.attempts[stage.name],
            )
        answer = best.answer
        is_cut_off = self._is_longer(best) or answer.finish_reason == FINISH_LENGTH
        return replace(
            job.blank_row(recipe, stage, reduced=is_reduced, cut_off=is_cut_off),
            engine_settings=self._supervisor.settings,
            status=Status.OK,
            caption=answer.text,
            finish_reason=answer.finish_reason,
            flags=best.flags,
            sampling=asdict(best.generation),
            **self._video_columns(best),
            probabilities=answer.probabilities,
            prompt_tokens=answer.prompt_tokens,
            cached_tokens=answer.cached_tokens,
            output_tokens=answer.output_tokens,
            attempts=tried + job.attempts[stage.name],
        )

    def _is_longer(self, attempt: _Attempt) -> bool:
        return attempt.generation.max_output_tokens > self._params.max_output_tokens

    async def _best_attempt(self, grid: FrameGrid) -> _Attempt:
        """The best answer, regenerated while its flags require it and the recipe allows it.

        Only the first attempt reduces the video: a regeneration is not worth it, since the next stage would get the
        reduced video too.
        """
        recipe, engine, job, stage = self._recipe, self._supervisor.engine, self._job, self._stage
        generation = engine.resolve(self._params)
        best: _Attempt | None = None
        for again in range(recipe.regenerations + 1):
            try:
                if best is None:
                    attempt = await self._attempt_reducing_video(grid, generation)
                else:
                    attempt = await self._attempt_raising_limit(best.grid, generation)
            except RequestFailed:
                if best is None:
                    raise
                return best
            flags = find_flags(
                attempt.answer.text,
                finish_reason=attempt.answer.finish_reason,
                instruction=recipe.template(stage, job.window),
                neighbor=await job.previous.first_answer(stage) if job.previous else None,
                output=stage.output,
            )
            attempt = replace(attempt, flags=flags)
            if best is None or self._is_better(attempt, best):
                best = attempt
            if REGENERATED.isdisjoint(flags):
                return best
            room = await self._planner.text_room(job, stage, attempt.grid if stage.video else job.whole)
            room = min(room, engine.context - attempt.answer.prompt_tokens)
            if (changed := self._regeneration_params(attempt, again, room)) is None:
                return best
            generation = changed
        assert best is not None  # there is at least one attempt
        return best

    def _is_better(self, attempt: _Attempt, best: _Attempt) -> bool:
        """Whether a later attempt replaces the best one so far. Of two cut-off answers the longer one is better."""
        if attempt.flags == best.flags and CUT_OFF in attempt.flags:
            return attempt.generation.max_output_tokens > best.generation.max_output_tokens
        return replaces(attempt.answer.text, attempt.flags, best.answer.text, best.flags)

    def _regeneration_params(self, attempt: _Attempt, again: int, room: int) -> SamplingParams | None:
        """Sampling parameters after a flagged answer, with a higher limit if it was cut off; None if no retry helps."""
        first = self._supervisor.engine.resolve(self._params)
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

    async def _attempt_reducing_video(self, grid: FrameGrid, generation: SamplingParams) -> _Attempt:
        """An answer; a failed request is retried with the videos of ``retry_grids``, or without video once more."""
        job, stage = self._job, self._stage
        limits = self._supervisor.engine.limits(self._recipe.variant.pixels)
        grids = retry_grids(grid, lambda grid: smaller_frames(grid, limits)) if stage.video else iter((grid, grid))
        failure: RequestFailed | None = None
        for smaller in grids:
            if smaller != grid:
                job.reduced[stage.name] = smaller
            try:
                attempt = await self._attempt_raising_limit(smaller, generation)
            except PoisonWindow:
                raise
            except RequestFailed as error:
                job.set_answer(stage, None)
                limit = MAX_CUT_OFF_ROOM * generation.max_output_tokens
                if isinstance(error, AnswerCutOff) and error.output_tokens >= limit:
                    raise  # a smaller video does not raise this limit
                failure = error
                continue
            job.set_answer(stage, attempt.answer.text)
            return attempt
        assert failure is not None  # there is at least one grid
        raise failure

    async def _attempt_raising_limit(self, grid: FrameGrid, generation: SamplingParams) -> _Attempt:
        """An answer; reasoning or JSON that is cut off is retried with twice the output limit.

        Raises:
            AnswerCutOff: if the context is full, or ``MAX_CUT_OFF_ROOM`` times the limit is not enough.
        """
        highest = MAX_CUT_OFF_ROOM * generation.max_output_tokens
        while True:
            try:
                return await self._attempt(grid, generation)
            except AnswerCutOff as cut_off:
                self._job.set_answer(self._stage, None)
                room = min(highest, self._supervisor.engine.context - cut_off.prompt_tokens)
                limit = min(2 * generation.max_output_tokens, room)
                if limit <= generation.max_output_tokens:
                    raise
                generation = replace(generation, max_output_tokens=limit)

    async def _attempt(self, grid: FrameGrid, generation: SamplingParams) -> _Attempt:
        """The answer to one request."""
        if not self._stage.video:
            answer = await self._answer(self._request(generation))
            return _Attempt(answer, generation, grid, None)
        job, video = self._job, self._job.show(self._stage, grid)
        frames = await self._frames(video)
        if is_first := video.prefilled is None:
            video.prefilled = asyncio.Event()
        else:
            await video.prefilled.wait()
        try:
            if job.poison:
                raise job.poison
            answer = await self._answer_with_video(video, frames, generation)
        except PoisonWindow as error:
            if not video.is_cached:  # the crash is before any answer: each other stage would cost three crashes too
                job.poison = error
            raise
        finally:
            if is_first:
                video.prefilled.set()
        return _Attempt(answer, generation, grid, frames)

    async def _answer_with_video(self, video: JobVideo, frames: Frames, generation: SamplingParams) -> Completion:
        """The answer to a request with video, whose pixels are sent only if the engine has not received them yet."""
        job, stage, supervisor = self._job, self._stage, self._supervisor

        def on_prefilled() -> None:
            video.is_cached, video.crashes = True, supervisor.crashes
            if video.prefilled is not None:
                video.prefilled.set()

        is_cached, crashes = video.is_cached, video.crashes
        request = replace(
            self._request(generation),
            video_id=self._video_id(video.grid),
            frames=frames,
            is_cached=is_cached,
            on_prefilled=on_prefilled,
        )
        answer = await self._answer(request)
        # Only the first request of a stage, with frames that an earlier stage has put into the cache.
        if is_cached and job.attempts[stage.name] == 1 and crashes == supervisor.crashes:
            hits = CacheHits(answer.cached_tokens, answer.cacheable_tokens, supervisor.engine.is_hybrid)
            job.hits[stage.name] = hits
        on_prefilled()
        return answer

    def _request(self, generation: SamplingParams) -> Request:
        """The request without its video."""
        recipe, job, stage = self._recipe, self._job, self._stage
        instruction = recipe.instruction(stage, job.window, job.texts(stage) or {})
        return Request(
            video_id="",
            frames=None,
            prompt=self._supervisor.engine.render(instruction, video=stage.video),
            generation=generation,
            stage=recipe.stages.index(stage) + 1,
            output=stage.output,
            replica=job.replica,
        )

    async def _answer(self, request: Request) -> Completion:
        """The engine's answer; counted as an attempt.

        Raises:
            JsonCutOff: if JSON is cut off.
            RequestFailed: if the request fails, or JSON is invalid.
        """
        job, stage = self._job, self._stage
        job.attempts[stage.name] += 1
        started = time.monotonic()
        try:
            answer = await self._supervisor.complete(request)
        except PoisonWindow:
            job.attempts[stage.name] += POISON_CRASHES - 1
            raise
        finally:
            job.seconds[stage.name] += time.monotonic() - started
        if isinstance(stage.output, JsonOutput):
            if answer.finish_reason == FINISH_LENGTH:
                raise JsonCutOff(answer.prompt_tokens, answer.output_tokens)
            _check_json(answer.text)
        return answer

    def _video_id(self, grid: FrameGrid) -> str:
        """The key of the engine's caches. It differs for another size or frame sampling of the same window."""
        version = self._recipe.video_version
        return f"{self._job.window.window_id}-{version}-{grid.frames}x{grid.height}x{grid.width}"

    async def _frames(self, video: JobVideo) -> Frames:
        """The frames of a video, decoded once for all stages.

        Raises:
            RequestFailed: if they cannot be decoded.
        """
        if video.frames is None:
            video.frames = asyncio.create_task(self._decode(video.grid))
            # Retrieves the exception also if all stages are canceled; asyncio would log it otherwise.
            video.frames.add_done_callback(lambda frames: frames.cancelled() or frames.exception())
        return await video.frames

    async def _decode(self, grid: FrameGrid) -> Frames:
        started = time.monotonic()
        try:
            return await self._decoder.frames(self._job, grid)
        except Exception as error:  # an unreadable clip must not stop the other windows
            raise RequestFailed(getattr(error, "kind", "unreadable"), str(error) or type(error).__name__) from error
        finally:
            self._job.seconds[DECODE] += time.monotonic() - started

    def _video_columns(self, attempt: _Attempt) -> dict[str, Any]:
        """The columns about the frames that the model saw; null where its processor does not return them."""
        frames, seen = attempt.frames, attempt.answer.seen_video
        if frames is None:
            return {}
        if seen is None:
            seen = SeenVideo(tuple(range(attempt.grid.frames)), attempt.grid.height, attempt.grid.width)
        columns: dict[str, Any] = {
            "reductions": reductions(self._job.wanted, attempt.grid),
            "frames_replaced": frames.replaced,
            "frames_padded": frames.padded,
            "frame_height": seen.height,
            "frame_width": seen.width,
        }
        if (kept := seen.positions) is None:
            return columns
        fps = frames.fps * (len(kept) - 1) / (kept[-1] - kept[0]) if len(kept) > 1 else None
        indices = tuple(frames.indices[position] for position in kept)
        return {**columns, "frame_indices": indices, "frame_fps": fps}


def retry_grids(grid: FrameGrid, smaller: Callable[[FrameGrid], FrameGrid]) -> Iterator[FrameGrid]:
    """The video of each attempt: the planned one twice, half its frames, and half its frames at a smaller size."""
    yield grid
    yield grid
    yield fewer_frames(grid)
    yield smaller(fewer_frames(grid))


def _check_json(text: str) -> None:
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestFailed(INVALID_JSON, f"the answer is no JSON ({error}): {text[:200]!r}") from error
