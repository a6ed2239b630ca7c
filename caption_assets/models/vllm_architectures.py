"""The models that vLLM supports without remote code; others are rejected before their weights are downloaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from caption_assets.models.weights import WeightsError

TABLE = "vllm_architectures.json"
"""File name of the table, which ``scripts/vllm_architectures.py`` writes from the installed vLLM and transformers."""


def check_supported(config: Mapping[str, Any], address: str, *, video: bool = True) -> None:
    """Check that vLLM supports a model with its own classes.

    Args:
        config: the model's ``config.json``.
        address: the model's address, for messages.
        video: whether the model is shown videos. Otherwise language models are supported too.

    Raises:
        WeightsError: if it needs code from its repository, or vLLM does not support it.
    """
    supported = _supported()
    vllm, model_type = f"vLLM {supported['vllm']}", config.get("model_type")
    named = config.get("architectures")
    architectures = [str(name) for name in named] if isinstance(named, list) else []
    known_type = model_type in supported["model_types"]
    served = {*supported["architectures"], *(() if video else supported["language_architectures"])}
    known_architecture = not architectures or not served.isdisjoint(architectures)
    if known_type and known_architecture:
        return
    shown = f"model type {model_type!r}" + (f", architecture {', '.join(architectures)}" if architectures else "")
    if "auto_map" in config or (not known_type and known_architecture and architectures):
        lacking = "configuration class" if not known_type else "model class"
        raise WeightsError(
            f"{address} needs code from its own repository, which is never run: {vllm} has no {lacking} for it "
            f"({shown}); choose another model, or a checkpoint of this one in transformers' format (InternVL: those "
            "with -HF in their names)"
        )
    if last := next((supported["removed"][name] for name in architectures if name in supported["removed"]), None):
        raise WeightsError(
            f"{vllm} no longer supports {address}, but {last} and earlier do ({shown}): choose another model"
        )
    kind, others = ("video", "qwen2.5 or qwen3") if video else ("language", "Qwen/Qwen2.5-14B-Instruct")
    raise WeightsError(
        f"{vllm} does not support {address} as a {kind} model ({shown}): choose another model, such as {others}"
    )


@cache
def _supported() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((files("caption_assets.models") / TABLE).read_text())
    return found
