"""A model's configuration files: the parser, the architecture and the quantization method."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caption_assets.models.checkpoint_files import CONFIG
from caption_assets.models.weights import WeightsError

_QUANTIZATION_KEYS = ("quantization_config", "compression_config")
"""The second key occurs in old compressed-tensors checkpoints."""
_OTHER_FILES = {"hf_quant_config.json": "modelopt"}
"""Files beside ``config.json`` that select a quantization method in vLLM."""


@dataclass(frozen=True, slots=True)
class ModelProperties:
    """The properties of a model that decide the engine's configuration."""

    model_type: str = ""
    """Transformers' name of the architecture, such as ``qwen2_5_vl``; empty if there is no configuration."""
    quantization: str | None = None
    """Quantization method of the weights, such as ``awq``; None for unquantized weights."""

    @classmethod
    def read(cls, folder: Path) -> ModelProperties:
        """Read the files of the model in ``folder``; without ``config.json`` the defaults apply.

        Raises:
            WeightsError: if ``config.json`` is not a JSON object.
        """
        path = folder / CONFIG
        if not path.exists():
            return cls()
        config = parse_config(path.read_bytes(), str(path))
        return cls(str(config.get("model_type", "")), _quantization(config) or _quantization_beside(folder))


def parse_config(content: bytes, address: str) -> Mapping[str, Any]:
    """Parse a ``config.json``.

    Raises:
        WeightsError: if it is not a JSON object.
    """
    try:
        found = json.loads(content)
    except ValueError as error:
        raise WeightsError(f"{address} is not valid JSON ({error}): restore the file") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{address} is not a JSON object: restore the file")
    return found


def _quantization(config: Mapping[str, Any]) -> str | None:
    """The method that a configuration or one of its parts (``text_config``, ``thinker_config``) names."""
    for part in _parts(config):
        for key in _QUANTIZATION_KEYS:
            if found := part.get(key):
                return str(found.get("quant_method", "unknown")) if isinstance(found, dict) else str(found)
    return None


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield config
    for part in config.values():
        if isinstance(part, dict):
            yield from _parts(part)


def _quantization_beside(folder: Path) -> str | None:
    return next((method for name, method in _OTHER_FILES.items() if (folder / name).exists()), None)
