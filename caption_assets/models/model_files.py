"""A model's own files: the architecture and the quantization that its ``config.json`` names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caption_assets.models.parts import CONFIG
from caption_assets.models.served import parse_config

_QUANTIZATION_KEYS = ("quantization_config", "compression_config")
"""The second is that of old compressed-tensors checkpoints."""
_OTHER_FILES = {"hf_quant_config.json": "modelopt"}
"""Files beside ``config.json`` from which vLLM takes the quantization, and their methods."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What decides how the engine is configured for a model."""

    model_type: str = ""
    """Architecture by transformers' name, such as ``qwen2_5_vl``; empty if there is no configuration."""
    quantization: str | None = None
    """Method by which the weights are quantised, such as ``awq``; None for unquantised weights."""

    @classmethod
    def read(cls, folder: Path) -> ModelFiles:
        """Read the files of the model in ``folder``; a folder without ``config.json`` has the defaults.

        Raises:
            WeightsError: if ``config.json`` is not a JSON object.
        """
        path = folder / CONFIG
        if not path.exists():
            return cls()
        config = parse_config(path.read_bytes(), str(path))
        return cls(str(config.get("model_type", "")), _quantization(config) or _quantization_beside(folder))


def _quantization(config: Mapping[str, Any]) -> str | None:
    """The method that a configuration, or that of one of its parts (``text_config``, ``thinker_config``), names."""
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
