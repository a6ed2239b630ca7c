"""Small LoRA adapters of the sample model, as PEFT writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from caption_assets.models.variants import SAMPLE

Modules = Mapping[str, tuple[int, int]]
"""Input and output sizes of the modules that an adapter changes, by name."""
LANGUAGE: Modules = {
    f"model.language_model.layers.{layer}.self_attn.{name}": (192, outputs)
    for layer in range(4)
    for name, outputs in (("q_proj", 192), ("v_proj", 64))
}
OLD_NAMES: Modules = {name.replace("language_model.", ""): size for name, size in LANGUAGE.items()}
"""Names in transformers before 4.52."""
VISION: Modules = {f"model.visual.blocks.{block}.attn.qkv": (128, 384) for block in range(4)}


def adapter_files(
    modules: Modules = LANGUAGE, *, rank: int = 4, scale: float = 0.5, seed: int = 1, **config: Any
) -> dict[str, bytes]:
    """An adapter's two files with random weights; a larger ``scale`` changes more."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, (inputs, outputs) in modules.items():
        for factor, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
            tensors[f"base_model.model.{name}.lora_{factor}.weight"] = scale * rng.standard_normal(shape).astype(
                np.float32
            )
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": SAMPLE.hub_id,
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": sorted({name.rsplit(".", 1)[1] for name in modules}),
        "bias": "none",
    }
    return {
        "adapter_config.json": json.dumps(fields | config).encode(),
        "adapter_model.safetensors": save(tensors),
    }


def write_adapter(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write ``files`` into ``folder``; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder
