"""The vLLM engine: started once a run, asked many times, gone afterwards. vLLM is imported when it starts."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from caption_assets.captioning.lifeline import OWNER
from caption_assets.captioning.recipe import Generation, Recipe
from caption_assets.captioning.request import Completion, Request
from caption_assets.clips.decode import Frames

ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # binding threads to cores would pin every process to the same ones
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
"""Defaults for variables that vLLM reads; what the user has set stands."""


class RequestRefused(ValueError):
    """A request that the engine would not take or could not finish, with its reason; the engine itself is well."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How the engine is built. Defaults are the reference's (NeMo Curator)."""

    gpu_memory_utilization: float = 0.85
    """Share of the GPU's memory."""
    processor_cache_gb: float = 4.0
    """Memory for preprocessed videos, from which stage 2 gets those of stage 1."""
    max_batched_tokens: int = 32768
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of vLLM's ``AsyncEngineArgs``; they win over everything else."""


def engine_arguments(model: Path, recipe: Recipe, config: EngineConfig) -> dict[str, Any]:
    """Keyword arguments of vLLM's ``AsyncEngineArgs`` for the recipe's model, which lies in the folder ``model``."""
    variant = recipe.variant
    arguments: dict[str, Any] = {
        "model": str(model),
        "dtype": variant.dtype,
        "max_model_len": variant.max_model_len,
        "max_num_batched_tokens": config.max_batched_tokens,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "limit_mm_per_prompt": {"image": 0, "video": 1},
        "mm_processor_cache_gb": config.processor_cache_gb,
        # Frames arrive at their final size; the model's own processor normalises them.
        "mm_processor_kwargs": {"do_resize": False},
        "enable_prefix_caching": True,
    }
    if recipe.fp8:
        # The language model alone: FP8 of the vision tower is fragile (vllm issue 17595).
        arguments |= {"quantization": "fp8_per_tensor", "quantization_config": {"ignore": ["visual.*"]}}
    return arguments | dict(variant.engine) | dict(config.extra)


@asynccontextmanager
async def start_engine(model: Path, recipe: Recipe, config: EngineConfig) -> AsyncIterator[CaptionEngine]:
    """Build the engine, and shut it down with all its processes when the block ends, however it ends."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ[OWNER] = str(os.getpid())
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_arguments(model, recipe, config)))
    try:
        yield CaptionEngine(llm)
    finally:
        llm.shutdown()


class CaptionEngine:
    """A running engine. Requests may be made concurrently; the engine batches them."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._tokenizer = llm.get_tokenizer()

    def render(self, instruction: str) -> str:
        """The whole prompt, by the model's own chat template: the video first, so that both stages share a prefix."""
        content = [{"type": "video"}, {"type": "text", "text": instruction}]
        return str(
            self._tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
        )

    async def complete(self, request: Request, generation: Generation) -> Completion:
        """Have the model answer a request.

        Raises:
            RequestRefused: if the engine does not take or finish this request.
            vllm.v1.engine.exceptions.EngineDeadError: if the engine is gone.
        """
        from vllm import SamplingParams
        from vllm.v1.engine.exceptions import EngineGenerateError

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
        except (ValueError, EngineGenerateError) as error:
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
