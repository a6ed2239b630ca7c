"""The sample model's tokenizer: Qwen's byte-level BPE and special tokens, with a small vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from tokenizers import Tokenizer, decoders, models, trainers
from transformers import Qwen2Tokenizer

from caption_assets.captioning.recipe_file import built_in
from caption_assets.sample.world import VALUES, attributes_json, short_caption, stage2_caption

VOCABULARY = 1024
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'video' -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif part.type == 'image' -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- else -%}
{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}"""
"""Qwen's chat format: role, content, end of turn, and one placeholder for a video, which the processor expands."""


def build_tokenizer() -> Qwen2Tokenizer:
    """Train the vocabulary on the world's sentences and the recipe's prompts. Every call gives the same tokenizer."""
    pretokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pretokenizer
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(_byte_alphabet())
    size = VOCABULARY - len(SPECIAL_TOKENS)
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(_corpus(), trainer)
    vocabulary, merges = _parts(bpe)
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS),
        model_max_length=32768,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _corpus() -> Iterator[str]:
    for color, shape, motion, size, background in product(*VALUES.values()):
        yield stage2_caption(color, shape, motion, size, background)
        yield attributes_json(color, shape, motion, size, background)
        yield short_caption(color, shape, motion)
    for _ in range(10):
        for stage in built_in("sample").stages:
            yield stage.instruction(dict.fromkeys(stage.needs, "{text}"))
        yield "system\nuser\nassistant\nyes\nno\n"


def _byte_alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return ByteLevel.alphabet()


def _parts(bpe: Tokenizer) -> tuple[dict[str, int], list[Any]]:
    import json

    model = json.loads(bpe.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]
