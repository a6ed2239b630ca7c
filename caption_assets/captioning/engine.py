"""The vLLM engine: built in its own processes, asked many times at once, gone afterwards. Imports vLLM at its start."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import math
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from functools import cached_property, lru_cache, partial
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import numpy as np

from caption_assets.captioning.adapter import Adapter
from caption_assets.captioning.admission import Load
from caption_assets.captioning.budget import FrameGrid
from caption_assets.captioning.build import Build, main_module_hidden
from caption_assets.captioning.chat import Chat, TemplateError
from caption_assets.captioning.engine_arguments import REFERENCE_STEP_TOKENS, STEP_TOKENS
from caption_assets.captioning.engine_failure import CauseFile, explain_start
from caption_assets.captioning.prompts import escape_special_tokens, structural_tokens
from caption_assets.captioning.reasoning import Reasoning, UnknownParser
from caption_assets.captioning.recipe import DEFAULTS, Recipe, SamplingParams
from caption_assets.captioning.request import Completion, ReasoningCutOff, Request, RequestFailed
from caption_assets.captioning.seen_video import SeenVideos
from caption_assets.captioning.video_tokens import QWEN, VideoTokens, patch_factor
from caption_assets.captioning.vllm_plugin import OWNER, PLUGIN
from caption_assets.errors import CaptionAssetsError
from caption_assets.models.checkpoint_files import CONFIG
from caption_assets.models.model_config import ModelProperties, parse_config
from caption_assets.models.supported import check_supported
from caption_assets.models.variants import PixelLimits
from caption_assets.models.weights import WeightsError
from caption_assets.video.decode import Frames
from caption_assets.video.frame_sampling import FRAME_FACTOR

logger = logging.getLogger(__name__)
T = TypeVar("T")

ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # binding threads to cores would pin every process to the same ones
    "OMP_WAIT_POLICY": "passive",  # threads that wait by spinning take the cores from decoders: 1.3 times as slow
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
"""Defaults for variables that vLLM reads; what the user has set stands."""
RESERVED = frozenset(
    {"model", "tokenizer", "revision", "tokenizer_revision", "trust_remote_code", "scheduling_policy"}
    | {"dtype", "quantization", "quantization_config", "mm_processor_kwargs", "limit_mm_per_prompt"}
    | {"tensor_parallel_size", "data_parallel_size"}
    | {"enable_lora", "max_loras", "max_lora_rank", "default_mm_loras"}
)
"""Engine arguments that are not the user's: weights come verified from the mirror, no remote code is run, and number
formats, frames and the number of GPUs have settings of their own."""
VISION_PARTS = ("visual.*", "vision_tower.*", "vision_model.*")
"""Names of the vision part in vLLM's models."""
AUTO_CONTEXT = -1
"""vLLM's value of ``max_model_len`` for the model's own, reduced to what fits the memory."""
PROBES = ((FRAME_FACTOR, 2.0), (5 * FRAME_FACTOR, 0.37))
"""Numbers of frames and rates of the videos with which the start-up check measures tokens."""
EXTRA_SAMPLING = ("top_k", "min_p", "presence_penalty", "frequency_penalty")
"""Sampling parameters that a model's files may give and that no setting has."""
_NO_PLACEHOLDER = re.compile("prompt (replacement|placeholders|updates)")
"""Of vLLM's message about a prompt without the placeholder of a video."""
CACHE_BYTES_PER_PIXEL = 2 * 3 * 2
"""Of the cache of preprocessed videos, at most, for each pixel of a visual token's square: two frames, three channels,
two bytes a value (9.4 kB a token of Qwen2.5-VL were measured; where values stay uint8 it is half of that)."""
CACHE_SHARE = 0.5
"""Of the cache of preprocessed videos, for windows under way. It forgets what was used longest ago, and while a window
is under way about as many others come and go as are under way with it."""
ENCODER_SHARE = 0.5
"""Of the GPU memory that ``gpu_memory_utilization`` leaves, for encoded videos."""
ENCODER_SHARE_OF_KV = 1 / 8
"""Memory for encoded videos where that for the KV cache is given, as a share of it: a token of Qwen2.5-VL-7B takes
7 KiB encoded (3,584 values of two bytes) and 56 KiB in the KV cache."""
KV_SHARE = 0.9
"""Of the KV cache, for windows under way."""
SHUTDOWN_SECONDS = 2.0
"""An engine on the CPU does not end within vLLM's own 5 s either, and leaves nothing behind when it is killed."""
WINDOWS_PER_SEQUENCE = 2
"""Windows under way for each sequence that the engine runs at once: one decodes while another is captioned."""


class EngineError(CaptionAssetsError):
    """An engine that does not start, or that crashes too often."""


class EngineCrashed(Exception):
    """The engine crashed or stopped responding. Its requests can be retried on another engine."""


class _CacheMiss(Exception):
    """A request sent only the id of its video, and the engine's cache has evicted the video."""


_UNHASHED = ("request_timeout_seconds", "frames_gb", "max_engine_restarts")
"""Fields of ``EngineConfig`` that vLLM never sees."""
_HASHED_NAMES = {
    "tensor_parallel_size": "tensor_parallel",
    "data_parallel_size": "data_parallel",
    "engine_args": "arguments",
}
"""Former names of fields: the hashes in stored rows are made with them."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The settings of the engine, each field under the setting's name. None is the model's default."""

    gpu_memory_utilization: float | None = None
    """Share of the GPU's memory."""
    processor_cache_gb: float | None = None
    """Memory for preprocessed videos, in GiB."""
    max_batched_tokens: int | None = None
    """Tokens in one step of the engine."""
    tensor_parallel_size: int = 1
    """Number of GPUs that share one replica of the model."""
    data_parallel_size: int = 1
    """Number of replicas of the model, each on its own GPUs."""
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of vLLM's ``AsyncEngineArgs``; they override all others."""
    request_timeout_seconds: float = 600.0
    """Timeout of a request."""
    frames_gb: float = 2.0
    """Maximum memory for decoded frames of windows in progress, in GiB."""
    max_engine_restarts: int = 10
    """Maximum number of engine restarts in a run, for every 1,000 requests."""

    @property
    def identity(self) -> str:
        """Version of vLLM and a hash of what decides whether the engine runs, such as ``vllm-cpu 0.32.0 3f2a9c01``."""
        hashed = {_HASHED_NAMES.get(name, name): value for name, value in asdict(self).items() if name not in _UNHASHED}
        values = {**hashed, "arguments": dict(self.engine_args)}
        digest = sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:8]
        return f"{_vllm()} {digest}"


def _vllm() -> str:
    """Name and version of the build of vLLM that is installed."""
    for name in ("vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            return f"{name} {version(name)}"
    return "no vLLM"


def engine_arguments(
    model: Path, recipe: Recipe, config: EngineConfig, adapter: Adapter | None = None
) -> dict[str, Any]:
    """Keyword arguments of vLLM's ``AsyncEngineArgs`` for the recipe's model, which is in the folder ``model``.

    Raises:
        EngineError: if the user's arguments hold one that is not the user's to give.
    """
    if forbidden := RESERVED & config.engine_args.keys():
        raise EngineError(
            f"CAPTION_ENGINE_ARGS gives {', '.join(sorted(forbidden))}, which this project sets by itself: take it out "
            "(the model is chosen with CAPTION_MODEL, its number format with CAPTION_DTYPE, FP8 with CAPTION_FP8, a "
            "LoRA adapter with CAPTION_LORA, GPUs with CAPTION_TENSOR_PARALLEL_SIZE and CAPTION_DATA_PARALLEL_SIZE)"
        )
    variant, files = recipe.variant, ModelProperties.read(model)
    arguments: dict[str, Any] = {
        "model": str(model),
        # A quantization method has dtypes of its own: vLLM takes the one that the files name.
        "dtype": recipe.dtype or ("auto" if files.quantization else variant.dtype),
        "max_model_len": variant.max_model_len or AUTO_CONTEXT,
        # The next three and the limits of a prompt are the reference's (NeMo Curator).
        STEP_TOKENS: REFERENCE_STEP_TOKENS,
        "gpu_memory_utilization": 0.85,
        "mm_processor_cache_gb": 4.0,
        "limit_mm_per_prompt": {"image": 0, "video": 1},
        "enable_prefix_caching": True,
        "scheduling_policy": "priority",  # without it vLLM takes a request's priority and ignores it
        "tensor_parallel_size": config.tensor_parallel_size,
        "data_parallel_size": config.data_parallel_size,
    }
    if files.model_type in QWEN:
        # Frames arrive at their final size; the model's own processor normalizes them.
        arguments["mm_processor_kwargs"] = {"do_resize": False}
    if recipe.fp8 and files.quantization:
        logger.warning("the weights of %s are quantised already (%s): no FP8", variant.hub_id, files.quantization)
    elif recipe.fp8:
        # The language model alone: FP8 of the vision tower is fragile (vllm issue 17595).
        arguments |= {"quantization": "fp8_per_tensor", "quantization_config": {"ignore": list(VISION_PARTS)}}
    if adapter:
        arguments |= adapter.arguments()
    wanted = {
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "mm_processor_cache_gb": config.processor_cache_gb,
        "max_num_batched_tokens": config.max_batched_tokens,
    }
    given = {name: value for name, value in wanted.items() if value is not None}
    return arguments | dict(variant.engine) | given | dict(config.engine_args)


@asynccontextmanager
async def start_engine(
    model: Path, recipe: Recipe, config: EngineConfig, adapter: Adapter | None = None
) -> AsyncIterator[CaptionEngine]:
    """Build the engine, and shut it down with all its processes when the block ends, however it ends.

    The event loop goes on while the engine is built. A task that is canceled meanwhile ends the build.

    Args:
        model: folder of the model's files.
        recipe: what captions are made with.
        config: what the user wants otherwise.
        adapter: the recipe's LoRA adapter, if it has one.

    Raises:
        EngineError: if vLLM is not installed, does not know an argument or apply the adapter, or the engine does not
            start.
        ValueError: if ``adapter`` is not the recipe's.
    """
    if recipe.lora != (adapter.lora if adapter else None):
        raise ValueError(f"the recipe's adapter is {recipe.lora}, and the engine's {adapter}")
    _check_supported(model, config)
    arguments = engine_arguments(model, recipe, config, adapter)
    _prepare_environment()
    cause = CauseFile()
    build = Build(partial(_build, arguments, recipe.generation.max_output_tokens, adapter))
    try:
        try:
            llm = await build.result()
        except EngineError:
            raise
        except Exception as error:  # configuration, loading and profiling raise whatever they like
            raise EngineError(
                f"the engine for {recipe.variant.hub_id} (fp8 {'on' if recipe.fp8 else 'off'}) did not start: "
                f"{explain_start(error, cause.read(), arguments)}"
            ) from error
        engine = CaptionEngine(llm, recipe, config, adapter, cause.read)
        del llm
        try:
            await engine.check()
            await engine.load_adapter()
            yield engine
        finally:
            engine.shut_down()
    finally:
        build.end()
        cause.remove()
        gc.collect()  # now: left to the interpreter's exit, the engine's finaliser would fail and say so


def _check_supported(model: Path, config: EngineConfig) -> None:
    """Refuse a model that needs remote code, also where its files did not come through the mirror.

    Raises:
        EngineError: if vLLM does not support it.
    """
    path, overrides = model / CONFIG, config.engine_args.get("hf_overrides")
    try:
        found = parse_config(path.read_bytes(), str(path))
        check_supported({**found, **(overrides if isinstance(overrides, Mapping) else {})}, str(model))
    except OSError as error:
        raise EngineError(f"cannot read {path} ({error.strerror}): put the whole model there") from error
    except WeightsError as error:
        raise EngineError(str(error)) from error


def _build(
    arguments: dict[str, Any], max_output_tokens: int, adapter: Adapter | None, check: Callable[[], None]
) -> Any:
    """Build vLLM's engine; ``check`` raises if it is not wanted any more."""
    from vllm import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    check()
    _check_names(arguments, {known.name for known in fields(AsyncEngineArgs)})
    wanted = AsyncEngineArgs(**arguments)
    configured = wanted.create_engine_config(UsageContext.ENGINE_CONTEXT)
    _require_video(configured.model_config)
    _check_output(max_output_tokens, configured.model_config.max_model_len)
    if adapter:
        try:
            adapter.check(configured.model_config, configured.lora_config)
        except WeightsError as error:
            raise EngineError(str(error)) from error
    _enlarge_encoder_cache(configured)
    check()
    with main_module_hidden():  # engine processes need nothing from it
        return AsyncLLM.from_vllm_config(configured, disable_log_stats=wanted.disable_log_stats)


def _check_output(max_output_tokens: int, context: int) -> None:
    if max_output_tokens >= context:
        raise EngineError(
            f"CAPTION_MAX_OUTPUT_TOKENS is {max_output_tokens}, but the model's context has {context} tokens for both "
            "prompt and answer: lower it"
        )


def _require_video(config: Any) -> None:
    """Refuse a model without video before its weights are loaded."""
    from vllm.multimodal import MULTIMODAL_REGISTRY

    if config.is_multimodal_model and "video" in MULTIMODAL_REGISTRY.get_processing_info(config).supported_mm_limits:
        return
    raise EngineError(
        f"the model in {config.model} ({', '.join(config.architectures)}) takes no video: choose a video model with "
        "CAPTION_MODEL"
    )


def _prepare_environment() -> None:
    """Set what vLLM and its processes read from the environment."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Forked processes would not be prepared: vLLM loads its plug-ins once, and the fork inherits that it has.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    if (allowed := os.environ.get("VLLM_PLUGINS")) is not None and PLUGIN not in allowed.split(","):
        os.environ["VLLM_PLUGINS"] = f"{allowed},{PLUGIN}"
    os.environ[OWNER] = str(os.getpid())


def _enlarge_encoder_cache(config: Any) -> None:
    """Let the engine keep encoded videos until their stage 2.

    The last tokens of a video, which fill no block of the prefix cache, are computed again in stage 2, and for them the
    engine wants the whole video encoded. By itself it keeps as many tokens as one step has, so that nine of ten videos
    were encoded again, a quarter of the CPU engine's time. No argument sets this, but the configuration holds it.
    """
    from vllm.platforms import current_platform

    if (kv_bytes := config.cache_config.kv_cache_memory_bytes) is not None:
        memory = ENCODER_SHARE_OF_KV * kv_bytes
    elif current_platform.is_cpu():
        return  # main memory is not vLLM's alone
    else:
        spare = 1 - config.cache_config.gpu_memory_utilization
        memory = ENCODER_SHARE * spare * current_platform.get_device_total_memory()
    model = config.model_config
    vision = getattr(model.hf_config, "vision_config", None)
    levels = 1 + len(getattr(vision, "deepstack_visual_indexes", ()))  # Qwen3-VL adds some of its inner layers
    token_bytes = levels * model.get_inputs_embeds_size() * model.dtype.itemsize
    scheduler = config.scheduler_config
    scheduler.encoder_cache_size = max(scheduler.encoder_cache_size, int(memory / token_bytes))


def _max_video_tokens(config: Any) -> int:
    """Maximum number of tokens of a video that is ever encoded.

    A larger one passes vLLM's own check where the cache was widened, but is never scheduled: its request hangs.
    """
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.multimodal.encoder_budget import MultiModalBudget

    budget = MultiModalBudget(config, MULTIMODAL_REGISTRY)
    room = int(budget.get_encoder_budget())
    budget.reset_cache()
    return room


def _check_names(arguments: Mapping[str, Any], known: set[str]) -> None:
    for name in arguments:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise EngineError(
                f"vLLM has no engine argument {name!r}{f' (did you mean {near[0]!r}?)' if near else ''}: "
                "fix CAPTION_ENGINE_ARGS"
            )


class CaptionEngine:
    """A running engine. Requests may be made concurrently; the engine batches them.

    Args:
        llm: vLLM's.
        recipe: what captions are made with.
        config: what the user wants otherwise.
        adapter: the recipe's LoRA adapter, if it has one.
        cause: the first error of the engine's processes, if there was one.
    """

    def __init__(
        self,
        llm: Any,
        recipe: Recipe,
        config: EngineConfig,
        adapter: Adapter | None = None,
        cause: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._llm = llm
        self._adapter = adapter
        self._cause = cause
        # These outlive the engine: windows are planned with them also while another is built.
        self._vllm_config, self._model_config, self._tokenizer = llm.vllm_config, llm.model_config, llm.get_tokenizer()
        self._recipe = recipe
        self._config = config
        self._stopped: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._last_output_at = 0.0
        self._cache_gb = self._model_config.get_multimodal_config().mm_processor_cache_gb
        self.resent = 0
        """Videos that had to be sent again, since the engine's cache had let them go."""
        self.text_tokens = lru_cache(maxsize=1024)(self._text_tokens)
        self.max_video_tokens = sys.maxsize
        """Maximum number of tokens of one video, beside the context: those that the engine encodes in one step."""

    @cached_property
    def factor(self) -> int:
        """Sides of a frame are multiples of this, in pixels."""
        return patch_factor(self._model_config.hf_config) or self._recipe.variant.pixels.factor

    @cached_property
    def _seen(self) -> SeenVideos:
        return SeenVideos(_patch_side(self._model_config), self._process)

    @cached_property
    def _videos(self) -> VideoTokens:
        return VideoTokens(self._model_type, self.factor, self._token_count, self._measure)

    @cached_property
    def _cache_bytes_per_token(self) -> float:
        """Of the cache of preprocessed videos; measured where the model's processor sizes the frames."""
        return float(CACHE_BYTES_PER_PIXEL * self.factor**2)

    @cached_property
    def _chat(self) -> Chat:
        return Chat(self._model_config, self._tokenizer, self._recipe.chat_template_kwargs)

    @cached_property
    def _reasoning(self) -> Reasoning:
        return Reasoning(
            self._tokenizer,
            model_type=self._model_type,
            parser=self._recipe.reasoning_parser,
            arguments=self._chat.arguments,
            generation_prompt=self._chat.generation_prompt,
        )

    @property
    def _model_type(self) -> str:
        return str(self._model_config.hf_config.model_type)

    @cached_property
    def special_tokens(self) -> frozenset[str]:
        """Tokens that structure a prompt, to be broken up in texts."""
        return structural_tokens(self._tokenizer)

    @property
    def context(self) -> int:
        """Longest prompt and answer together, in tokens."""
        return int(self._model_config.max_model_len)

    @property
    def is_hybrid(self) -> bool:
        """Whether the model mixes attention with layers that keep a state."""
        return bool(self._model_config.is_hybrid)

    @property
    def capacity(self) -> Load:
        """What may be under way at once."""
        config = self._vllm_config
        kv_tokens = (config.cache_config.num_gpu_blocks or 0) * config.cache_config.block_size
        sequences = config.scheduler_config.max_num_seqs * self._config.data_parallel_size
        return Load(
            windows=WINDOWS_PER_SEQUENCE * sequences,
            tokens=int(KV_SHARE * kv_tokens),
            cache_bytes=int(CACHE_SHARE * self._cache_gb * 2**30) if self._cache_gb else sys.maxsize,
            frame_bytes=int(self._config.frames_gb * 2**30),
        )

    def load(self, grid: FrameGrid, video_tokens: int, text_tokens: int) -> Load:
        """What a window with this video takes of the capacity."""
        cache_bytes = int(video_tokens * self._cache_bytes_per_token)
        return Load(1, video_tokens + text_tokens, cache_bytes, grid.bytes)

    def limits(self, pixels: PixelLimits) -> PixelLimits:
        """A variant's pixel limits in squares of this model's size: as many tokens, of as many pixels as they have."""
        return pixels.with_factor(self.factor)

    def resolve(self, generation: SamplingParams) -> SamplingParams:
        """``generation`` with the model's own value, or else the reference's, for each one that is None."""
        return generation.with_defaults(self._model_sampling, DEFAULTS)

    @cached_property
    def _model_sampling(self) -> dict[str, Any]:
        """Sampling parameters from the model's ``generation_config.json``."""
        return dict(self._model_config.get_diff_sampling_param())

    @cached_property
    def _extra_sampling(self) -> dict[str, Any]:
        """Those without a setting, for a recipe that leaves sampling to the model."""
        own = self._model_sampling if self._recipe.generation.uses_model_defaults else {}
        return {name: own[name] for name in EXTRA_SAMPLING if name in own}

    @cached_property
    def _end_of_turn(self) -> list[int]:
        """Special tokens after an answer in the chat template, where the model's files do not name them as stop tokens.

        MiniCPM-V 4.6 runs on past the end of its turn without them.
        """
        own = self._model_config.try_get_generation_config().get("eos_token_id")
        known = {self._tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
        special = set(self._tokenizer.all_special_ids) | set(self._tokenizer.added_tokens_decoder)
        after = self._tokenizer.encode(self._chat.end_of_turn.strip(), add_special_tokens=False)[:1]
        return [token for token in after if token in special - known]

    async def check(self) -> None:
        """Prepare whole requests: render them, have the model's processor prepare a video, and count tokens.

        Where a Qwen model's tokens are not those that are computed (pruned videos), they are measured from then on.

        Raises:
            EngineError: if the model does not accept a video, or the context has no room for the smallest.
        """
        limits = self.limits(self._recipe.variant.pixels)
        side = math.isqrt(limits.min_pixels) // limits.factor * limits.factor
        try:
            self._reasoning.answer("")
            for frames, fps in PROBES:
                grid = FrameGrid(frames, side, side)
                measured = await self._videos.measured(grid, fps)
                self._videos.is_exact &= self._videos.computed(grid, fps) == measured
        except (TemplateError, UnknownParser, RequestFailed) as error:
            raise EngineError(f"{self._recipe.variant.hub_id} does not accept videos: {error}") from error
        self.max_video_tokens = _max_video_tokens(self._vllm_config)
        frames, fps = PROBES[0]
        self._check_context(await self.video_tokens(FrameGrid(frames, side, side), fps))

    def _check_context(self, video: int) -> None:
        """Refuse a context in which not even the smallest video has room beside the prompt and the answer."""
        if video > self.max_video_tokens:
            raise EngineError(
                f"the smallest video has {video} tokens, but the engine encodes at most {self.max_video_tokens} in one "
                "step: raise CAPTION_MAX_BATCHED_TOKENS"
            )
        answer = self._recipe.generation.max_output_tokens
        prompt = self.text_tokens(self.render(self._recipe.prompt.stage1))
        if prompt + video + answer > self.context:
            raise EngineError(
                f"the context of {self.context} tokens has no room for the prompt ({prompt}), the smallest video "
                f"({video}) and the answer ({answer}): lower CAPTION_MAX_OUTPUT_TOKENS, shorten the prompt, or choose "
                "a model with a longer context"
            )

    async def _measure(self, grid: FrameGrid, fps: float) -> int:
        """Tokens of a video, as the model's own processor prepares it; see ``VideoTokens``."""
        frames = Frames(np.zeros((grid.frames, grid.height, grid.width, 3), np.uint8), tuple(range(grid.frames)), fps)
        prompt = self.render("")
        try:
            prepared = await self._render(prompt, frames, uuid4().hex, skip_mm_cache=True)
        except Exception as error:  # processors raise whatever they like
            reason = str(error.__cause__ or error) or type(error).__name__
            if _NO_PLACEHOLDER.search(reason):
                reason = "its chat template has no place for one: choose a model whose template has"
            raise RequestFailed("refused", reason) from error
        tokens = len(prepared["prompt_token_ids"]) - self.text_tokens(prompt)
        if not self._videos.is_exact:
            self._note_size(prepared, tokens)
        return tokens

    def _note_size(self, prepared: Any, tokens: int) -> None:
        """Learn how large the model's processor makes a video."""
        from vllm.multimodal.cache.base import MultiModalCache

        for item in prepared["mm_kwargs"]["video"]:
            self._cache_bytes_per_token = MultiModalCache.get_item_size(item) / tokens

    async def load_adapter(self) -> None:
        """Have the engine load the adapter, if there is one: each request names it.

        Raises:
            EngineError: if vLLM does not apply it.
        """
        if self._adapter is None:
            return
        try:
            await self._llm.add_lora(self._adapter.request())
        except Exception as error:  # the engine's process raises it as text
            reason = str(error).removeprefix("Call to add_lora method failed: ")
            raise EngineError(
                f"vLLM cannot apply the adapter {self._adapter.lora.hub_id} to {self._recipe.variant.hub_id}: {reason}"
            ) from error

    def render(self, instruction: str) -> str:
        """The whole prompt, by the model's own chat template: the video first, so that both stages share a prefix."""
        return self._chat.render(escape_special_tokens(instruction, self.special_tokens))

    async def prompt_tokens(self, prompt: str, grid: FrameGrid, fps: float) -> int:
        """Length of a rendered prompt with this video, as the engine will count it."""
        return self.text_tokens(prompt) + await self.video_tokens(grid, fps)

    async def video_tokens(self, grid: FrameGrid, fps: float) -> int:
        """Tokens that stand in the prompt for a video.

        Raises:
            RequestFailed: if the model's processor refuses such a video.
        """
        return await self._videos.count(grid, fps)

    def _text_tokens(self, prompt: str) -> int:
        """Tokens of a rendered prompt without its video, whose place is held by one token."""
        return self._token_count(prompt) - 1

    def _token_count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def shut_down(self) -> None:
        """Terminate the engine's processes; kill those that are left after ``SHUTDOWN_SECONDS``."""
        if not self._stopped.done():
            self._stopped.set_result("it was shut down")
        try:
            self._llm.shutdown(timeout=SHUTDOWN_SECONDS)
        finally:
            del self._llm

    async def complete(self, request: Request) -> Completion:
        """Return the model's answer to a request.

        Raises:
            RequestFailed: if the engine refuses this request or does not finish it within the time limit.
            EngineCrashed: if the engine has crashed or stopped responding.
        """
        try:
            return await self._with_timeout(
                self._answer(request, with_pixels=not (request.is_cached and self._cache_gb))
            )
        except _CacheMiss:
            self.resent += 1
            return await self._with_timeout(self._answer(request, with_pixels=True))

    async def _with_timeout(self, answering: Coroutine[Any, Any, T]) -> T:
        """The answer, unless the engine stops or the time limit is reached first."""
        limit = self._config.request_timeout_seconds
        loop = asyncio.get_running_loop()
        started = loop.time()
        answer = loop.create_task(answering)
        # Retrieves the exception also after a timeout; asyncio would log it otherwise.
        answer.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            either: set[asyncio.Future[Any]] = {answer, self._stopped}
            await asyncio.wait(either, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
        finally:
            answer.cancel()
        # An engine that hangs may have answered other requests at the start of the wait: only the second half counts.
        idle = loop.time() - max(self._last_output_at, started)
        if not self._stopped.done() and idle < limit / 2:
            raise RequestFailed(
                "timeout",
                f"no answer within {limit:g} s (CAPTION_REQUEST_TIMEOUT_SECONDS), while the engine answered other "
                "requests",
            )
        raise self._crashed(f"no output for {idle:.0f} s (CAPTION_REQUEST_TIMEOUT_SECONDS is {limit:g})")

    def _crashed(self, reason: str) -> EngineCrashed:
        """Mark the engine as stopped, which ends all other requests too; return the error."""
        if not self._stopped.done():
            self._stopped.set_result(reason)
        return EngineCrashed(f"the engine crashed: {self._stopped.result()}")

    async def _answer(self, request: Request, *, with_pixels: bool) -> Completion:
        from vllm.v1.engine.exceptions import EngineDeadError

        final = None
        try:
            prompt = await self._prepare(request, with_pixels)
            async for output in self._llm.generate(
                prompt,
                self._sampling(request.generation),
                uuid4().hex,
                lora_request=self._adapter.request() if self._adapter else None,
                priority=-request.stage,  # the lowest goes first
                data_parallel_rank=request.replica % self._config.data_parallel_size,
            ):
                final = output
                self._last_output_at = asyncio.get_running_loop().time()
        except EngineDeadError as error:
            raise self._crashed(self._cause() or "see the log above") from error
        except _CacheMiss:
            raise
        except Exception as error:  # whatever is wrong with one request stops no other
            raise RequestFailed("refused", str(error.__cause__ or error) or type(error).__name__) from error
        reason = str(final.outputs[0].finish_reason) if final else "none"
        if final is None or reason not in ("stop", "length"):
            if not with_pixels:
                raise _CacheMiss  # the engine's processes disagree on what is cached
            raise RequestFailed("refused", f"the engine ended the request without an answer (reason: {reason})")
        answer = final.outputs[0]
        text = self._reasoning.answer(answer.text)
        if text is None and reason == "length":
            raise ReasoningCutOff(len(final.prompt_token_ids), len(answer.token_ids))
        return Completion(
            text=text or "",
            finish_reason=reason,
            prompt_tokens=len(final.prompt_token_ids),
            cached_tokens=final.num_cached_tokens or 0,
            output_tokens=len(answer.token_ids),
            seen_video=self._seen.of(request.video_id),
            cacheable_tokens=self._cacheable_tokens(prompt),
        )

    def _cacheable_tokens(self, prepared: Any) -> int:
        cache = self._vllm_config.cache_config
        if not cache.enable_prefix_caching:
            return 0
        [video] = prepared["mm_placeholders"]["video"]
        return int((video.offset + video.length) // cache.block_size * cache.block_size)

    async def _prepare(self, request: Request, with_pixels: bool) -> Any:
        """Tokens and preprocessed frames of a request."""
        try:
            prepared = await self._render(request.prompt, request.frames if with_pixels else None, request.video_id)
        except ValueError as error:
            if not with_pixels and "Cache miss" in str(error):
                raise _CacheMiss from error
            raise
        for item in prepared["mm_kwargs"]["video"]:
            if with_pixels and item is not None:  # None: the engine's cache has it, and it was noted then
                await self._seen.note(request.video_id, request.frames, item.get_data())
        return prepared

    async def _process(self, frames: Frames) -> Mapping[str, Any]:
        """What the model's processor makes of a video that no cache is to hold."""
        prepared = await self._render(self.render(""), frames, uuid4().hex, skip_mm_cache=True)
        [item] = prepared["mm_kwargs"]["video"]
        data: Mapping[str, Any] = item.get_data()
        return data

    async def _render(self, prompt: str, frames: Frames | None, video_id: str, **options: bool) -> Any:
        """Tokens and preprocessed frames, made off the event loop; without ``frames`` the cache must hold them."""
        from vllm.renderers.inputs.preprocess import parse_model_prompt

        video = None if frames is None else (frames.pixels, video_metadata(frames))
        parts = {
            "prompt": prompt,
            "multi_modal_data": {"video": [video]},
            "multi_modal_uuids": {"video": [video_id]},
        }
        renderer = self._llm.renderer
        [prepared] = await renderer.render_cmpl_async(
            [parse_model_prompt(self._model_config, parts)],
            # The template has written them where the model wants them.
            renderer.default_cmpl_tok_params.with_kwargs(add_special_tokens=False),
            **options,
        )
        return prepared

    def _sampling(self, generation: SamplingParams) -> Any:
        import vllm

        resolved = self.resolve(generation)
        return vllm.SamplingParams(
            temperature=resolved.temperature,
            top_p=resolved.top_p,
            repetition_penalty=resolved.repetition_penalty,
            max_tokens=resolved.max_output_tokens,
            seed=resolved.seed,
            stop_token_ids=self._end_of_turn or None,
            skip_special_tokens=not self._reasoning.marks_are_special,
            **self._extra_sampling,
        )


def _patch_side(model_config: Any) -> int | None:
    """Side of a patch of the model's vision part, in pixels; None if its configuration does not name one."""
    side = getattr(getattr(model_config.hf_config, "vision_config", None), "patch_size", None)
    return side if isinstance(side, int) else None


def video_metadata(frames: Frames) -> dict[str, Any]:
    """What vLLM is told of the frames: as if they were the whole video, so that their own rate reaches the model."""
    count = len(frames.pixels)
    return {
        "fps": frames.fps,
        "duration": count / frames.fps,
        "total_num_frames": count,
        "frames_indices": list(range(count)),
        "do_sample_frames": False,
        "video_backend": "pyav",
    }
