"""vLLM's front end for a model: it prepares prompts as an engine does, without an engine's processes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from caption_assets.captioning.engine import CaptionEngine, EngineConfig, engine_arguments
from caption_assets.captioning.recipe import Recipe


async def build_front_end(
    folder: Path, recipe: Recipe, *, processor_resizes: bool = False, **arguments: Any
) -> CaptionEngine:
    """The front end for the model in ``folder``, without the start-up check.

    Args:
        folder: folder of the model.
        recipe: the model's recipe.
        processor_resizes: whether the model's own processor resizes frames.
        arguments: arguments of vLLM's engine.
    """
    import vllm
    from vllm.renderers import renderer_from_config

    wanted = engine_arguments(folder, recipe, EngineConfig(engine_args=arguments))
    if processor_resizes:
        del wanted["mm_processor_kwargs"]
    config = vllm.AsyncEngineArgs(**wanted).create_engine_config()
    renderer = renderer_from_config(config)
    front_end = SimpleNamespace(
        vllm_config=config,
        model_config=config.model_config,
        renderer=renderer,
        get_tokenizer=renderer.get_tokenizer,
    )
    return CaptionEngine(front_end, recipe, EngineConfig())


async def start_front_end(folder: Path, recipe: Recipe, **arguments: Any) -> CaptionEngine:
    """The front end for the model in ``folder``, after the start-up check."""
    engine = await build_front_end(folder, recipe, **arguments)
    await engine.check()
    return engine
