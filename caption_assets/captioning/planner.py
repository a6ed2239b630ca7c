"""The planner: fits each window's video and texts into the model's context, before any request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress

from caption_assets.captioning.budget import FrameGrid, FrameTooNarrow, NoRoom, fit, fit_context, fit_size
from caption_assets.captioning.decoding import require
from caption_assets.captioning.engine import EngineError
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.request import RequestFailed
from caption_assets.captioning.stages import Stage
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.captioning.window_job import NO_VIDEO, WindowJob
from caption_assets.store.tables import ManifestRow
from caption_assets.video.frame_sampling import frame_count

SPARE_TOKENS = 32
"""Margin in tokens: a caption can take more tokens inside a prompt than it took as an answer."""


class Planner:
    """Plans windows for the supervisor's current engine."""

    def __init__(self, supervisor: EngineSupervisor, recipe: Recipe) -> None:
        self._supervisor = supervisor
        self._recipe = recipe
        self._chains = chains(recipe.own_stages)

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
        largest, video = NO_VIDEO, 0
        if shown := [stage for stage in job.missing if stage.video]:
            limits = engine.limits(self._recipe.variant.pixels)
            height, width = require(window.height), require(window.width)
            seconds = require(window.end_seconds) - require(window.start_seconds)
            frames = frame_count(seconds, require(window.end_frame) - require(window.start_frame), self._recipe.frames)
            job.whole = fit(frames, height, width, limits)
            job.wanted = FrameGrid(frames, *fit_size(height, width, limits, limits.max_pixels))
            largest = await self._largest(job, shown)
        if largest != NO_VIDEO:
            video = await self._video_tokens(window, largest)
        job.load = engine.load(largest, video, self._text_load(job))

    async def _largest(self, job: WindowJob, stages: Iterable[Stage]) -> FrameGrid:
        """The largest video of these stages. A stage without room for one counts as none: it fails in its own run."""
        largest = NO_VIDEO
        for stage in stages:
            with suppress(RequestFailed):
                largest = max(largest, await self.fit(job, stage, job.whole), key=lambda grid: grid.bytes)
            if largest == job.whole:
                break
        return largest

    def _text_load(self, job: WindowJob) -> int:
        """Maximum tokens of prompts and answers, without the video, of stages that run at the same time."""
        missing = {stage.name for stage in job.missing}
        total = 0
        for chain in self._chains:
            total += max(
                (
                    self._reserved_tokens(job.window, stage) + self._recipe.params(stage).max_output_tokens
                    for stage in chain
                    if stage.name in missing
                ),
                default=0,
            )
        return total

    def _reserved_tokens(self, window: ManifestRow, stage: Stage) -> int:
        """Maximum text tokens of a stage's prompt: each text in it may be as long as its stage's output limit."""
        graph, recipe = self._recipe.graph, self._recipe
        slots = (recipe.params(graph.stage(name)).max_output_tokens + SPARE_TOKENS for name in stage.slots)
        return self.text_tokens(window, stage, dict.fromkeys(stage.needs, "")) + sum(slots)

    def text_tokens(self, window: ManifestRow, stage: Stage, texts: Mapping[str, str]) -> int:
        """Number of text tokens in a stage's prompt."""
        engine = self._supervisor.engine
        instruction = self._recipe.instruction(stage, window, texts)
        return engine.text_tokens(engine.render(instruction, video=stage.video), video=stage.video)

    async def text_room(self, job: WindowJob, stage: Stage, grid: FrameGrid) -> int:
        """Maximum tokens of a stage's text with room in each prompt that has a slot for it, beside a video.

        It covers all stages of the model, so that a text does not depend on which of them the run captions.
        """
        engine, rooms = self._supervisor.engine, [self._supervisor.engine.context]
        for later in self._recipe.own_stages:
            if count := later.slots.count(stage.name):
                own = self._recipe.params(stage).max_output_tokens + SPARE_TOKENS
                others = self._reserved_tokens(job.window, later) - count * own
                video = await self._video_tokens(job.window, grid) if later.video and grid != NO_VIDEO else 0
                room = engine.context - video - others - self._recipe.params(later).max_output_tokens
                rooms.append(room // count - SPARE_TOKENS)
        return min(rooms)

    async def _video_tokens(self, window: ManifestRow, grid: FrameGrid) -> int:
        seconds = require(window.end_seconds) - require(window.start_seconds)
        return await self._supervisor.engine.video_tokens(grid, (grid.frames - 1) / seconds)

    async def fit(self, job: WindowJob, stage: Stage, grid: FrameGrid) -> FrameGrid:
        """The largest video, at most ``grid``, that fits the context with a stage's prompt and answer.

        The result depends on no other stage, so that it is the same whichever stages the run captions.

        Raises:
            RequestFailed: if two frames of the minimum size do not fit, or for a stage without video its texts.
        """
        engine, answer = self._supervisor.engine, self._recipe.params(stage).max_output_tokens
        text = self.text_tokens(job.window, stage, job.texts(stage) or dict.fromkeys(stage.needs, ""))
        if not stage.video:
            if text + answer > engine.context:
                raise RequestFailed(
                    NoRoom.kind,
                    f"{stage.name} has no room for its answer: of the context of {engine.context} tokens its prompt "
                    f"takes {text} and the answer {answer}: lower the output limit of the stage or of those that it "
                    "needs",
                )
            return NO_VIDEO
        room = min(engine.context - text - answer, engine.max_video_tokens)
        limits = engine.limits(self._recipe.variant.pixels)
        try:
            return await fit_context(grid, limits, lambda grid: self._video_tokens(job.window, grid), room)
        except NoRoom as error:
            spare = engine.context - text - error.tokens
            remedy = (
                "shorten the prompt" if answer <= text or spare < 1 else f"lower {stage.limit_name} to {spare} or less"
            )
            raise RequestFailed(
                error.kind,
                f"{stage.name} has no room for the video: of the context of {engine.context} tokens its prompt "
                f"takes {text} and the answer {answer}, but two frames of the minimum size take {error.tokens}: "
                f"{remedy}",
            ) from error


def chains(stages: Iterable[Stage]) -> list[list[Stage]]:
    """The stages in chains, in each of which every stage needs the previous one, directly or through others.

    At most one stage of each chain runs at a time.
    """
    found: list[list[Stage]] = []
    ancestors: dict[str, set[str]] = {}
    for stage in stages:
        above = {*stage.needs, *(name for need in stage.needs for name in ancestors.get(need, ()))}
        ancestors[stage.name] = above
        chain = next((chain for chain in found if chain[-1].name in above), None)
        if chain is None:
            found.append([stage])
        else:
            chain.append(stage)
    return found
