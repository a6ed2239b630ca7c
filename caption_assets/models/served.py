"""The models that vLLM serves without remote code, and the refusal of all others before their weights are fetched."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from caption_assets.models.weights import WeightsError

TABLE = "served.json"
"""Written by ``scripts/served_models.py`` from the installed vLLM and transformers."""


def check_served(config: Mapping[str, Any], address: str) -> None:
    """Check that vLLM serves a model with classes of its own.

    Args:
        config: the model's ``config.json``.
        address: of the model, for messages.

    Raises:
        WeightsError: if it needs code from its repository, or vLLM does not serve it.
    """
    served = _served()
    vllm, model_type = f"vLLM {served['vllm']}", config.get("model_type")
    named = config.get("architectures")
    architectures = [str(name) for name in named] if isinstance(named, list) else []
    known_type = model_type in served["model_types"]
    known_architecture = not architectures or any(name in served["architectures"] for name in architectures)
    if known_type and known_architecture:
        return
    shown = f"model type {model_type!r}" + (f", architecture {', '.join(architectures)}" if architectures else "")
    if "auto_map" in config or (not known_type and known_architecture and architectures):
        lacking = "configuration class" if not known_type else "model class"
        raise WeightsError(
            f"{address} needs code from its own repository: {vllm} has no {lacking} for it ({shown}), and no code from "
            "model repositories is run here; choose another model, or a checkpoint of this one in transformers' format "
            "(InternVL: those with -HF in their names)"
        )
    if last := next((served["removed"][name] for name in architectures if name in served["removed"]), None):
        raise WeightsError(
            f"{address} is not served by {vllm} any more, but by {last} and earlier ({shown}): choose another model"
        )
    raise WeightsError(
        f"{address} is not a model that {vllm} serves with video ({shown}): choose another model, such as qwen2.5 or "
        "qwen3"
    )


def parse_config(content: bytes, address: str) -> Mapping[str, Any]:
    """A ``config.json``.

    Raises:
        WeightsError: if it is no JSON object.
    """
    try:
        found = json.loads(content)
    except ValueError as error:
        raise WeightsError(f"{address} is no JSON ({error}): restore the file") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{address} is no JSON object: restore the file")
    return found


@cache
def _served() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((files("caption_assets.models") / TABLE).read_text())
    return found
