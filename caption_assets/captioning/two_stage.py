"""One window from its clip to its captions: stage 1, then at once stage 2, and what is done when one does not work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count
from typing import Any

from caption_assets.captioning.admission import NOTHING, Load
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
from caption_assets.captioning.decoding import Decoder, known
from caption_assets.captioning.engine import EngineError
from caption_assets.captioning.prefix_cache import NO_HITS, CacheHits
from caption_assets.captioning.quality import CUT_OFF, REGENERATED, find_flags, replaces
from caption_assets.captioning.recipe import Recipe, SamplingParams
from caption_assets.captioning.request import (
    CUT,
    REASONING_CUT_OFF,
    Completion,
    PoisonWindow,
    ReasoningCutOff,
    Request,
    RequestFailed,
)
from caption_assets.captioning.rows import Problem, blank_row, stage1_failed, uncaptioned
from caption_assets.captioning.seen_video import SeenVideo
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.captioning.task import NO_SECONDS, Captioned, StageSeconds, Task
from caption_assets.store.tables import CaptionRow, ManifestRow, Status
from caption_assets.video.decode import Frames
from caption_assets.video.frame_sampling import frame_count

FREER_TEMPERATURE = 0.7
FREER_TOP_P = 0.95
"""At least, for a caption that is generated again: what was drawn first would be drawn again."""
STRONGER_PENALTY = 0.1
"""Added to the repetition penalty with each generation of a caption that is not drawn but always the likeliest."""
POISON_DEATHS = 3
"""Engines that a window is asked of before it is taken for poison; see ``EngineSupervisor``."""
MOST_ROOM = 8
"""Times the output limit that a model may have which is still reasoning: thoughts of 4,000 tokens are common."""
SPARE_TOKENS = 32
"""A stage-1 caption may take a few tokens more in the stage-2 prompt than it took as an answer."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a window will be shown, known before it is decoded."""

    wanted: FrameGrid
    """By the sampling and the limits of one frame."""
    whole: FrameGrid
    """Within the limits of a window as well."""
    grid: FrameGrid
    """Within the context too, for the first stage that is to be made."""
    load: Load
    """What it takes while it is under way."""
    caption_room: int
    """Tokens that its stage-1 caption may have, so that stage 2 has room for the same frames, that, and its own."""


class Said:
    """What was said of a window first: resolved with the first answer to each stage, None where there was none at once.

    The window after it is compared with that. It must not wait for what is tried again afterwards: a clip whose windows
    look alike would be captioned one by one, and one that hangs would hold up all that follow.

    Args:
        captions: of both stages, where they are known already.
    """

    def __init__(self, captions: tuple[str | None, str | None] | None = None) -> None:
        loop = asyncio.get_running_loop()
        self._captions: dict[int, asyncio.Future[str | None]] = {stage: loop.create_future() for stage in (1, 2)}
        if captions:
            for stage, caption in enumerate(captions, 1):
                self.resolve(stage, caption)

    async def caption(self, stage: int) -> str | None:
        """The caption, once it is there."""
        return await asyncio.shield(self._captions[stage])

    def resolve(self, stage: int, caption: str | None) -> None:
        """Give the caption of a stage; a second time nothing happens."""
        if not self._captions[stage].done():
            self._captions[stage].set_result(caption)


@dataclass(slots=True)
class _Run:
    """A window under way."""

    task: Task
    plan: Plan
    before: Said | None
    """Of the window before it in the same clip."""
    said: Said
    """Of this one."""
    replica: int
    """Of the engine, by its number modulo how many there are."""
    grid: FrameGrid
    """As it is shown at present."""
    frames: Frames | None = None
    seen: bool = False
    """Whether the engine has been given these frames."""
    deaths: int = 0
    """Of engines, when these frames were last given to one: the next engine has an empty prefix cache."""
    attempts: int = 0
    """Requests of the present stage."""
    spent: StageSeconds = NO_SECONDS
    hits: CacheHits = NO_HITS

    def show(self, grid: FrameGrid) -> None:
        """Show it otherwise from now on."""
        if grid != self.grid:
            self.grid, self.frames = grid, None
        self.seen = False


@dataclass(frozen=True, slots=True)
class _Attempt:
    """An answer, how it was drawn, and what is wrong with it."""

    answer: Completion
    generation: SamplingParams
    grid: FrameGrid
    frames: Frames
    flags: tuple[str, ...] = ()


def ladder(grid: FrameGrid, smaller: Callable[[FrameGrid], FrameGrid]) -> Iterator[FrameGrid]:
    """How a window is shown, try after try: as planned, again, with half the frames, then with smaller ones too."""
    yield grid
    yield grid
    yield fewer_frames(grid)
    yield smaller(fewer_frames(grid))


class Captioner:
    """Captions windows, each on its own: one that fails gets rows that say why and stops no other."""

    def __init__(self, supervisor: EngineSupervisor, recipe: Recipe, decoder: Decoder, *, with_stage2: bool) -> None:
        self._supervisor = supervisor
        self._recipe = recipe
        self._decoder = decoder
        self._with_stage2 = with_stage2
        self._replicas = count()

    async def plan(self, task: Task) -> Plan | Problem:
        """How a task's window will be shown, or why it cannot be.

        Raises:
            EngineError: if there is no engine any more.
        """
        try:
            return await self._plan(task)
        except (FrameTooNarrow, RequestFailed) as error:
            return Problem(error.kind, str(error), reduced=error.kind == NoRoom.kind)
        except EngineError:
            raise
        except Exception as error:  # whatever is wrong with one row stops no other
            return Problem("manifest", f"the manifest's row cannot be used: {type(error).__name__}: {error}")

    async def _plan(self, task: Task) -> Plan:
        window, engine = task.window, self._supervisor.engine
        limits = engine.limits(self._recipe.variant.pixels)
        height, width = known(window.height), known(window.width)
        seconds = known(window.end_seconds) - known(window.start_seconds)
        frames = frame_count(seconds, known(window.end_frame) - known(window.start_frame), self._recipe.frames)
        whole = fit(frames, height, width, limits)
        if task.stage1 is None:
            grid = await self._fit_stage(1, window, whole, self._text_tokens(window, None))
        else:
            grid = await self._fit_stage(2, window, whole, self._text_tokens(window, task.stage1))
        wanted = FrameGrid(frames, *fit_size(height, width, limits, limits.max_pixels))
        most = self._recipe.generation.max_output_tokens
        stage1_text = engine.text_tokens(engine.render(self._recipe.prompt_for(window).stage1))
        stage2_text = engine.text_tokens(engine.render(self._recipe.prompt.stage2_text("")))
        video = await self._video_tokens(window, grid)
        room = engine.context - video - stage2_text - SPARE_TOKENS - most
        longest = max(stage1_text, stage2_text + most + SPARE_TOKENS if self._with_stage2 else 0) + most
        return Plan(wanted, whole, grid, engine.load(grid, video, longest), room)

    def _text_tokens(self, window: ManifestRow, stage1: CaptionRow | None) -> int:
        """Tokens of a stage's prompt beside the video: stage 1's, or stage 2's with the stage-1 caption in it."""
        prompt, engine = self._recipe.prompt_for(window), self._supervisor.engine
        instruction = prompt.stage1 if stage1 is None else prompt.stage2_text(stage1.caption or "")
        return engine.text_tokens(engine.render(instruction))

    async def _video_tokens(self, window: ManifestRow, grid: FrameGrid) -> int:
        seconds = known(window.end_seconds) - known(window.start_seconds)
        return await self._supervisor.engine.video_tokens(grid, (grid.frames - 1) / seconds)

    async def _fit_stage(self, stage: int, window: ManifestRow, grid: FrameGrid, text: int) -> FrameGrid:
        """The largest video that the context has room for beside a stage's prompt and its answer.

        It follows from what the stage itself needs, so that it is the same in a joint run and in one of its own.

        Args:
            stage: 1 or 2.
            window: the manifest's row.
            grid: what the video is made to fit from.
            text: tokens of the stage's prompt.

        Raises:
            RequestFailed: if not even two small frames fit.
        """
        engine, most = self._supervisor.engine, self._recipe.generation.max_output_tokens
        room = min(engine.context - text - most, engine.video_room)
        limits = engine.limits(self._recipe.variant.pixels)
        try:
            return await fit_context(grid, limits, lambda grid: self._video_tokens(window, grid), room)
        except NoRoom as error:
            spare = engine.context - text - error.least
            remedy = "shorten the prompt" if most <= text or spare < 1 else f"lower it to {spare} or less"
            raise RequestFailed(
                error.kind,
                f"stage {stage} has no room for the video: of the context of {engine.context} tokens its prompt takes "
                f"{text}, CAPTION_MAX_OUTPUT_TOKENS keeps {most} for the answer, and two small frames need "
                f"{error.least}: {remedy}",
            ) from error

    async def run(self, task: Task, plan: Plan | Problem, before: Said | None, said: Said) -> Captioned:
        """Both stages of one task, or as many as are wanted and missing.

        Raises:
            EngineError: if there is no engine any more.
        """
        try:
            if isinstance(plan, Problem):
                return uncaptioned(self._recipe, task, plan, with_stage2=self._with_stage2)
            if task.stage1:
                said.resolve(1, task.stage1.caption)
            run = _Run(task, plan, before, said, next(self._replicas), plan.grid)
            try:
                run.frames = await self._decode(run)
            except RequestFailed as error:
                problem = Problem(error.kind, str(error))
                return uncaptioned(self._recipe, task, problem, with_stage2=self._with_stage2)
            stage1 = task.stage1 or await self._stage(1, run, None)
            if not self._with_stage2:
                return Captioned(task, stage1, None, run.spent)
            if stage1.caption is None:
                return Captioned(task, stage1, stage1_failed(self._recipe, task.window), run.spent)
            stage2 = await self._stage(2, run, stage1)
            return Captioned(task, stage1, stage2, run.spent, run.hits)
        finally:
            for stage in (1, 2):
                said.resolve(stage, None)

    async def _stage(self, stage: int, run: _Run, stage1: CaptionRow | None) -> CaptionRow:
        """The row of one stage."""
        window, tried = run.task.window, run.task.tried[stage - 1]
        run.attempts = 0
        prompt = self._recipe.prompt_for(window)
        instruction = prompt.stage1 if stage1 is None else prompt.stage2_text(stage1.caption or "")
        blank = partial(blank_row, self._recipe, stage, window, stage1)
        try:
            reduced = run.plan.grid != run.plan.whole if stage1 is None else await self._show_stage2(run, stage1)
        except RequestFailed as error:
            return replace(blank(reduced=True), error_kind=error.kind, error=str(error), attempts=tried + 1)
        try:
            best = await self._best(stage, run, instruction, prompt.stage1 if stage == 1 else prompt.stage2)
            if not best.answer.text:
                raise RequestFailed("empty_answer", "the model ended its answer without a word, each time it was asked")
        except RequestFailed as error:
            return replace(
                blank(reduced=reduced, cut_off=error.kind == REASONING_CUT_OFF),
                engine_settings=self._supervisor.settings,
                error_kind=error.kind,
                error=str(error),
                attempts=tried + run.attempts,
            )
        limit = self._recipe.generation.max_output_tokens
        return replace(
            blank(
                reduced=reduced,
                cut_off=best.answer.finish_reason == CUT or best.generation.max_output_tokens > limit,
            ),
            engine_settings=self._supervisor.settings,
            status=Status.OK,
            caption=best.answer.text,
            finish_reason=best.answer.finish_reason,
            flags=best.flags,
            reductions=reductions(run.plan.wanted, best.grid),
            sampling=asdict(best.generation),
            frames_replaced=best.frames.replaced,
            frames_padded=best.frames.padded,
            **_shown(best),
            prompt_tokens=best.answer.prompt_tokens,
            cached_tokens=best.answer.cached_tokens,
            output_tokens=best.answer.output_tokens,
            attempts=tried + run.attempts,
        )

    async def _show_stage2(self, run: _Run, stage1: CaptionRow) -> bool:
        """Show a window as stage 2 has room for it; returns whether the context has none for the whole window.

        Frames that stage 1 was shown after a failure are kept: more of them would fail again.

        Raises:
            RequestFailed: if not even two small frames fit.
        """
        window, plan = run.task.window, run.plan
        text = self._text_tokens(window, stage1)
        grid = await self._fit_stage(2, window, plan.whole, text)
        reduced = grid != plan.whole
        if run.grid != plan.grid:
            grid = await self._fit_stage(2, window, run.grid, text)
        if grid != run.grid:
            run.show(grid)
        return reduced

    async def _best(self, stage: int, run: _Run, instruction: str, template: str) -> _Attempt:
        """The best answer, generated again while its flags call for it and as often as the recipe allows.

        Only the first goes down the ladder: another is worth no smaller picture, which stage 2 would have too.

        Args:
            stage: 1 or 2.
            run: the window.
            instruction: as the model is asked.
            template: the same with no caption filled in.
        """
        generation = self._supervisor.engine.resolve(self._recipe.generation)
        best: _Attempt | None = None
        for again in range(self._recipe.regenerations + 1):
            try:
                ask = self._ask_longer if again else self._ask_down
                attempt = await ask(stage, run, instruction, generation)
            except RequestFailed:
                if best is None:
                    raise
                return best
            flags = find_flags(
                attempt.answer.text,
                finish_reason=attempt.answer.finish_reason,
                instruction=template,
                neighbour=await run.before.caption(stage) if run.before else None,
            )
            attempt = replace(attempt, flags=flags)
            if best is None or _is_better(attempt, best):
                best = attempt
            room = (
                run.plan.caption_room if stage == 1 else self._supervisor.engine.context - attempt.answer.prompt_tokens
            )
            if REGENERATED.isdisjoint(flags) or (changed := self._changed(attempt, again, room)) is None:
                return best
            generation = changed
        assert best is not None  # there is one attempt at least
        return best

    def _changed(self, attempt: _Attempt, again: int, room: int) -> SamplingParams | None:
        """How it is drawn after a flagged answer: otherwise, and longer if that was cut off; None if it is no use."""
        first = self._supervisor.engine.resolve(self._recipe.generation)
        assert first.temperature is not None
        assert first.top_p is not None
        assert first.repetition_penalty is not None
        longer_limit = max(first.max_output_tokens, min(2 * first.max_output_tokens, room))
        limit = longer_limit if CUT_OFF in attempt.flags else first.max_output_tokens
        if REGENERATED.intersection(attempt.flags) == {CUT_OFF}:
            longer = limit > attempt.generation.max_output_tokens
            return replace(attempt.generation, max_output_tokens=limit) if longer else None
        if first.temperature == 0:  # stays deterministic
            penalty = first.repetition_penalty + (again + 1) * STRONGER_PENALTY
            return replace(first, repetition_penalty=penalty, max_output_tokens=limit)
        return replace(
            first,
            temperature=max(first.temperature, FREER_TEMPERATURE),
            top_p=max(first.top_p, FREER_TOP_P),
            max_output_tokens=limit,
        )

    async def _ask_down(self, stage: int, run: _Run, instruction: str, generation: SamplingParams) -> _Attempt:
        """An answer, whatever it takes of the ladder."""
        limits = self._supervisor.engine.limits(self._recipe.variant.pixels)
        failure: RequestFailed | None = None
        for rung, grid in enumerate(ladder(run.grid, lambda grid: smaller_frames(grid, limits))):
            if rung:
                run.show(grid)
            try:
                attempt = await self._ask_longer(stage, run, instruction, generation)
            except PoisonWindow:
                raise
            except RequestFailed as error:
                run.said.resolve(stage, None)
                if (
                    isinstance(error, ReasoningCutOff)
                    and error.output_tokens >= MOST_ROOM * generation.max_output_tokens
                ):
                    raise  # smaller frames give it no more room
                failure = error
                continue
            run.said.resolve(stage, attempt.answer.text)
            return attempt
        assert failure is not None  # the ladder has rungs
        raise failure

    async def _ask_longer(self, stage: int, run: _Run, instruction: str, generation: SamplingParams) -> _Attempt:
        """An answer; one that is cut off inside a thought is asked for again with twice the room.

        Raises:
            ReasoningCutOff: if there is no more room, or ``MOST_ROOM`` times the limit is not enough.
        """
        most = MOST_ROOM * generation.max_output_tokens
        while True:
            try:
                return await self._ask_once(stage, run, instruction, generation)
            except ReasoningCutOff as cut_off:
                run.said.resolve(stage, None)
                room = min(most, self._supervisor.engine.context - cut_off.prompt_tokens)
                limit = min(2 * generation.max_output_tokens, room)
                if limit <= generation.max_output_tokens:
                    raise
                generation = replace(generation, max_output_tokens=limit)

    async def _ask_once(self, stage: int, run: _Run, instruction: str, generation: SamplingParams) -> _Attempt:
        """An answer to the window as it is shown at present."""
        frames = run.frames = run.frames or await self._decode(run)
        request = Request(
            video_id=self._video_id(run),
            frames=frames,
            prompt=self._supervisor.engine.render(instruction),
            generation=generation,
            stage=stage,
            seen=run.seen,
            replica=run.replica,
        )
        run.attempts += 1
        begun = time.monotonic()
        try:
            answer = await self._supervisor.complete(request)
        except PoisonWindow:
            run.attempts += POISON_DEATHS - 1
            raise
        finally:
            waited = time.monotonic() - begun
            run.spent += StageSeconds(stage1=waited) if stage == 1 else StageSeconds(stage2=waited)
        if request.seen and stage == 2 and run.attempts == 1 and run.deaths == self._supervisor.deaths:
            run.hits = CacheHits(answer.cached_tokens, answer.cacheable_tokens, self._supervisor.engine.is_hybrid)
        run.seen, run.deaths = True, self._supervisor.deaths
        return _Attempt(answer, generation, run.grid, frames)

    def _video_id(self, run: _Run) -> str:
        """Covers the frames: another size or sampling of the same window must not meet the same cache entry."""
        grid = run.grid
        return f"{run.task.window.window_id}-{self._recipe.version(1)}-{grid.frames}x{grid.height}x{grid.width}"

    async def _decode(self, run: _Run) -> Frames:
        """The window's frames as it is shown at present."""
        begun = time.monotonic()
        try:
            return await self._decoder.frames(run.task, run.grid)
        except Exception as error:  # whatever is wrong with one clip or its storage stops no other
            raise RequestFailed(getattr(error, "kind", "unreadable"), str(error) or type(error).__name__) from error
        finally:
            run.spent += StageSeconds(decode=time.monotonic() - begun)


def _shown(attempt: _Attempt) -> dict[str, Any]:
    """The columns of a row that say which frames the model saw; what its processor does not show is null."""
    frames, seen = attempt.frames, attempt.answer.seen
    if seen is None:
        seen = SeenVideo(tuple(range(attempt.grid.frames)), attempt.grid.height, attempt.grid.width)
    size = {"frame_height": seen.height, "frame_width": seen.width}
    if (kept := seen.positions) is None:
        return {**size, "frame_indices": None, "frame_fps": None}
    fps = frames.fps * (len(kept) - 1) / (kept[-1] - kept[0]) if len(kept) > 1 else None
    return {**size, "frame_indices": tuple(frames.indices[position] for position in kept), "frame_fps": fps}


def _is_better(attempt: _Attempt, best: _Attempt) -> bool:
    """Whether a later attempt replaces the best so far. Of two that were cut off the longer one says more."""
    if attempt.flags == best.flags and CUT_OFF in attempt.flags:
        return attempt.generation.max_output_tokens > best.generation.max_output_tokens
    return replaces(attempt.answer.text, attempt.flags, best.answer.text, best.flags)


def load_of(plan: Plan | Problem) -> Load:
    """What a window takes while it is under way; nothing if it cannot be captioned."""
    return plan.load if isinstance(plan, Plan) else NOTHING
