"""vLLM's front end for a model: it prepares prompts as an engine does, without the processes that would run them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from caption_assets.captioning.engine import CaptionEngine, EngineConfig, engine_arguments
from caption_assets.captioning.recipe import Recipe


async def start_front(folder: Path, recipe: Recipe, **arguments: Any) -> CaptionEngine:
    """The front end for the model in ``folder``, after its start-up check; ``arguments`` are vLLM's."""
    import vllm
    from vllm.renderers import renderer_from_config

    wanted = engine_arguments(folder, recipe, EngineConfig(engine_args=arguments))
    config = vllm.AsyncEngineArgs(**wanted).create_engine_config()
    renderer = renderer_from_config(config)
    front = SimpleNamespace(
        vllm_config=config,
        model_config=config.model_config,
        renderer=renderer,
        get_tokenizer=renderer.get_tokenizer,
    )
    engine = CaptionEngine(front, recipe, EngineConfig())
    await engine.check()
    return engine
