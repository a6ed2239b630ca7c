"""A call of ``QwenVL.generate``: captions its videos concurrently, each as soon as the engine has room for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from caption_assets.captioning.admission import Admission, Load
from caption_assets.captioning.budget import FrameGrid, FrameTooNarrow, NoRoom, fit, fit_context
from caption_assets.captioning.engine import CaptionEngine, EngineError
from caption_assets.captioning.planner import SPARE_TOKENS
from caption_assets.captioning.prompts import escape_special_tokens
from caption_assets.captioning.request import Request, RequestFailed
from caption_assets.captioning.sampling import SamplingParams
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.errors import CaptionAssetsError
from caption_assets.models.variants import PixelLimits
from caption_assets.qwen_vl.given_video import GivenVideo
from caption_assets.qwen_vl.stage2_prompt import second_prompt
from caption_assets.video.decode import Frames


class CaptionsIncomplete(CaptionAssetsError):
    """A call of ``generate`` in which some videos got no caption."""

    def __init__(self, captions: list[str | None], stage1: list[str | None], errors: dict[int, str]) -> None:
        first = min(errors)
        super().__init__(
            f"{len(errors)} of {len(captions)} videos got no caption. Video {first}: {errors[first]}. "
            "The captions of the others are in `captions` of this exception"
        )
        self.captions = captions
        """A caption or None for each video."""
        self.stage1 = stage1
        """Captions of the first stage, also of videos whose second stage failed."""
        self.errors = errors
        """Error messages, by number of the video."""


class _InvalidVideo(Exception):
    """A video or prompt that cannot be captioned."""


@dataclass(frozen=True, slots=True)
class _Window:
    """A video with its prompt, before its frames are converted."""

    video: GivenVideo
    prompt: str
    grid: FrameGrid
    """Number and size of the frames that the model is shown."""
    load: Load


@dataclass(frozen=True, slots=True)
class Call:
    """The settings of a call."""

    supervisor: EngineSupervisor
    pixels: PixelLimits
    enlarges: bool
    """Whether frames below the model's minimum size are enlarged if the model takes them as they are."""
    max_output_tokens: int
    stage2_prompt: str | None
    """Text before the stage-1 caption in the stage-2 prompt; None for no second stage."""
    float_maximum: float
    """Maximum value of videos of floats."""

    async def captions(self, videos: Sequence[Mapping[str, Any]]) -> list[str]:
        """A caption for each video, in order.

        Raises:
            CaptionsIncomplete: if some videos got no caption.
        """
        admission = Admission(self.supervisor.engine.capacity)
        converting = asyncio.Lock()
        captions: list[str | None] = [None] * len(videos)
        stage1: list[str | None] = [None] * len(videos)
        errors: dict[int, str] = {}

        async def one(number: int, video: Mapping[str, Any]) -> None:
            window = await self._plan(video)
            await admission.acquire(window.load)
            try:
                async with converting:  # one resize uses all cores
                    frames = await asyncio.to_thread(self._convert, window)
                first = self._request(window.prompt, frames, number)
                stage1[number] = caption = (await self.supervisor.complete(first)).text
                if self.stage2_prompt is not None:
                    caption = (await self.supervisor.complete(self._second(first, caption))).text
                if caption:
                    captions[number] = caption
                else:
                    errors[number] = "the model's answer was empty"
            finally:
                admission.release(window.load)

        async def one_or_error(number: int, video: Mapping[str, Any]) -> None:
            try:
                await one(number, video)
            except (_InvalidVideo, RequestFailed, EngineError) as error:  # all remaining requests get the EngineError
                errors[number] = str(error)

        async with asyncio.TaskGroup() as group:
            for number, video in enumerate(videos):
                group.create_task(one_or_error(number, video))
        if errors:
            raise CaptionsIncomplete(captions, stage1, errors)
        return [caption for caption in captions if caption is not None]

    def _request(self, prompt: str, frames: Frames, number: int) -> Request:
        generation = SamplingParams(max_output_tokens=self.max_output_tokens)
        return Request(uuid4().hex, frames, prompt, generation, stage=1, replica=number)

    def _second(self, first: Request, caption: str) -> Request:
        text = escape_special_tokens(f"{self.stage2_prompt}{caption}", self.supervisor.engine.special_tokens)
        return replace(first, prompt=second_prompt(first.prompt, text), stage=2, is_cached=True)

    async def _plan(self, video: Mapping[str, Any]) -> _Window:
        """Validate a video and its prompt, and choose number and size of the frames that the model is shown."""
        engine = self.supervisor.engine
        with _as_invalid():
            given = GivenVideo.parse(video["multi_modal_data"])
            prompt = str(video["prompt"])
            text_tokens = self._text_tokens(engine, prompt)
            grid = await self._fit(engine, given, text_tokens)
            video_tokens = await engine.video_tokens(grid, given.fps(grid.frames))
        return _Window(given, prompt, grid, engine.load(grid, video_tokens, text_tokens))

    async def _fit(self, engine: CaptionEngine, given: GivenVideo, text_tokens: int) -> FrameGrid:
        """The given frames in the number and size that the model's pixel limits and the context allow."""
        limits, shape = engine.limits(self.pixels), given.shape
        if not (self.enlarges or shape.height % limits.factor or shape.width % limits.factor):
            limits = replace(limits, min_pixels=min(limits.min_pixels, shape.height * shape.width))

        async def tokens(grid: FrameGrid) -> int:
            return await engine.video_tokens(grid, given.fps(grid.frames))

        room = min(engine.context - text_tokens, engine.max_video_tokens)
        return await fit_context(fit(shape.frames, shape.height, shape.width, limits), limits, tokens, room)

    def _text_tokens(self, engine: CaptionEngine, prompt: str) -> int:
        """Maximum number of a stage's tokens without the video: prompt and answer."""
        answer = self.max_output_tokens
        stage1 = engine.text_tokens(prompt) + answer
        if self.stage2_prompt is None:
            return stage1
        second = second_prompt(prompt, escape_special_tokens(self.stage2_prompt, engine.special_tokens))
        return max(stage1, engine.text_tokens(second) + answer + SPARE_TOKENS + answer)  # with the first answer

    def _convert(self, window: _Window) -> Frames:
        with _as_invalid():
            return window.video.frames(window.grid, self.float_maximum)


@contextmanager
def _as_invalid() -> Iterator[None]:
    """Translate the errors of an invalid input."""
    try:
        yield
    except (FrameTooNarrow, NoRoom) as error:
        raise _InvalidVideo(str(error)) from error
    except (KeyError, TypeError, ValueError, RequestFailed) as error:
        raise _InvalidVideo(f"{type(error).__name__}: {error}") from error
