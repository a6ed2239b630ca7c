from dataclasses import fields

import pytest

from caption_assets.captioning.engine import RESERVED
from caption_assets.captioning.vllm_arguments import NEUTRAL, non_neutral
from caption_assets.models.variants import VARIANTS

pytestmark = pytest.mark.engine

CHANGE_CAPTIONS = frozenset(
    {"kv_cache_dtype", "load_format", "video_pruning_rate", "logits_processors", "model_impl", "hf_overrides", "seed"}
    | {"enable_lora", "default_mm_loras", "lora_dtype", "speculative_config", "generation_config", "attention_config"}
    | {"override_generation_config", "disable_sliding_window", "safetensors_load_strategy", "compilation_config"}
    | {"tokenizer_mode", "config_format", "model_class_overrides", "additional_config", "mamba_cache_dtype"}
    | {"mm_encoder_attn_dtype", "watermark_config", "max_model_len", "reasoning_config", "worker_cls", "scheduler_cls"}
)


def test_neutral_arguments_are_arguments_of_the_installed_vllm() -> None:
    from vllm import AsyncEngineArgs

    known = {field.name for field in fields(AsyncEngineArgs)}
    assert known >= NEUTRAL
    assert known - NEUTRAL >= CHANGE_CAPTIONS
    assert len(known - NEUTRAL - RESERVED) > 100  # any argument that is not known to be neutral changes the fingerprint


def test_engine_arguments_of_variants_are_neutral() -> None:
    assert [non_neutral(variant.engine) for variant in VARIANTS.values()] == [{}] * len(VARIANTS)
