"""A small language model with random weights, saved in the layout of the published models."""

from __future__ import annotations

from pathlib import Path

from caption_assets.sample.tokenizer import build_tokenizer
from tests.captioning.families import save, text_config


def write_language_model(folder: Path, seed: int = 0, context: int = 2048) -> None:
    """Write a Qwen2 model with the sample model's tokenizer. Different seeds give different answers."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    save(folder, Qwen2ForCausalLM(Qwen2Config(**text_config(tokenizer, context))), tokenizer)
