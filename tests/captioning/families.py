"""Small models of several families with random weights, saved in the layout of the published models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from caption_assets.sample.tokenizer import CHAT_TEMPLATE, build_tokenizer

THINKING_TEMPLATE = (
    CHAT_TEMPLATE.removesuffix("{% endif -%}")
    + """\
{% if enable_thinking is defined and enable_thinking is false -%}
<think>

</think>

{% else -%}
<think>
{% endif -%}
{% endif -%}"""
)
"""The template of Qwen3.5: the answer begins with reasoning, unless ``enable_thinking`` is false."""
FRAME_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% for part in message.content -%}
{%- if part.type == 'video' -%}
<video>
{% elif part.type == 'text' -%}
{{ part.text }}
{%- endif -%}
{%- endfor -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}"""
"""The template of InternVL-hf and LLaVA-OneVision."""
GLM_TEMPLATE = """\
[gMASK]<sop>
{%- for message in messages -%}
<|{{ message.role }}|>
{% for part in message.content -%}
{%- if part.type == 'video' -%}
<|begin_of_video|><|video|><|end_of_video|>
{%- elif part.type == 'text' -%}
{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|assistant|>
{{ '<think></think>' if enable_thinking is defined and not enable_thinking else '' }}
{%- endif -%}"""
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
MROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]}


def tokenizer_of(template: str, *added: str, **attributes: str) -> Any:
    """The sample model's tokenizer with a chat template and further special tokens."""
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(added)}, replace_extra_special_tokens=False)
    if attributes:
        tokenizer.add_special_tokens(attributes)
    tokenizer.chat_template = template
    return tokenizer


def write_qwen2_vl(folder: Path, context: int) -> None:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor, Qwen2VLVideoProcessor
    from transformers.models.qwen2_vl import Qwen2VLImageProcessor

    tokenizer = build_tokenizer()
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor(), chat_template=tokenizer.chat_template
    )
    config = Qwen2VLConfig(
        text_config={**text_config(tokenizer, context), "rope_parameters": MROPE},
        vision_config={"depth": 1, "embed_dim": 64, "num_heads": 2, "hidden_size": 64, "mlp_ratio": 1},
        **qwen_tokens(tokenizer),
    )
    save(folder, Qwen2VLForConditionalGeneration(config), processor)


def write_qwen2_5_vl(folder: Path, context: int) -> None:
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLVideoProcessor,
    )
    from transformers.models.qwen2_vl import Qwen2VLImageProcessor

    tokenizer = build_tokenizer()
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor(), chat_template=tokenizer.chat_template
    )
    config = Qwen2_5_VLConfig(
        text_config={**text_config(tokenizer, context), "rope_parameters": MROPE},
        vision_config={**VISION, "num_heads": 2, "fullatt_block_indexes": [0]},
        **qwen_tokens(tokenizer),
    )
    save(folder, Qwen2_5_VLForConditionalGeneration(config), processor)


VISION = {"depth": 1, "hidden_size": 64, "num_heads": 2, "out_hidden_size": 64, "intermediate_size": 64}


def write_qwen3_vl(folder: Path, context: int) -> None:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor, Qwen3VLVideoProcessor
    from transformers.models.qwen2_vl import Qwen2VLImageProcessor

    tokenizer = build_tokenizer()
    processor = Qwen3VLProcessor(
        Qwen2VLImageProcessor(patch_size=16),
        tokenizer,
        Qwen3VLVideoProcessor(),
        chat_template=tokenizer.chat_template,
    )
    config = Qwen3VLConfig(
        text_config={**text_config(tokenizer, context), "head_dim": 32, "rope_parameters": MROPE},
        vision_config={**VISION, "deepstack_visual_indexes": [0]},
        **qwen_tokens(tokenizer),
    )
    save(folder, Qwen3VLForConditionalGeneration(config), processor)


def write_qwen3_5(folder: Path, context: int) -> None:
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration, Qwen3VLProcessor, Qwen3VLVideoProcessor
    from transformers.models.qwen2_vl import Qwen2VLImageProcessor

    tokenizer = tokenizer_of(THINKING_TEMPLATE)
    tokenizer.add_tokens(["<think>", "</think>"])
    processor = Qwen3VLProcessor(
        Qwen2VLImageProcessor(patch_size=16),
        tokenizer,
        Qwen3VLVideoProcessor(),
        chat_template=tokenizer.chat_template,
    )
    rope = {**MROPE, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.25, "mrope_interleaved": True}
    config = Qwen3_5Config(
        text_config={
            **text_config(tokenizer, context),
            "num_hidden_layers": 2,
            "layer_types": ["linear_attention", "full_attention"],
            "head_dim": 32,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "rope_parameters": rope,
        },
        vision_config=dict(VISION),
        **qwen_tokens(tokenizer),
    )
    model = Qwen3_5ForConditionalGeneration(config)
    # Another token is always more probable: random weights would end their reasoning by chance.
    model.get_output_embeddings().weight.data[tokenizer.convert_tokens_to_ids("</think>")] = 0
    save(folder, model, processor)


def write_llava_onevision(folder: Path, context: int) -> None:
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    tokenizer = tokenizer_of(FRAME_TEMPLATE, "<image>", "<video>")
    size = {"height": 112, "width": 112}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[112, 112], [112, 224]]),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=64,
        vision_feature_select_strategy="full",
        chat_template=FRAME_TEMPLATE,
    )
    token = tokenizer.convert_tokens_to_ids
    config = LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **text_config(tokenizer, context)},
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 112,
            "patch_size": 14,
            "vision_use_head": False,
        },
        image_token_index=token("<image>"),
        video_token_index=token("<video>"),
        image_grid_pinpoints=[[112, 112], [112, 224]],
        vision_feature_layer=-1,
    )
    save(folder, LlavaOnevisionForConditionalGeneration(config), processor)
    rename_weights(folder, "vision_tower.", "vision_tower.vision_model.")  # as on the Hub


def write_internvl(folder: Path, context: int) -> None:
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
    )

    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = tokenizer_of(FRAME_TEMPLATE, *names.values())
    tokenizer._set_model_specific_special_tokens(names)
    size = {"height": 56, "width": 56}
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=size),
        tokenizer,
        InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=FRAME_TEMPLATE,
    )
    config = InternVLConfig(
        text_config={"model_type": "qwen2", **text_config(tokenizer, context)},
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": [56, 56],
            "patch_size": [14, 14],
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    save(folder, InternVLForConditionalGeneration(config), processor)


def write_glm4_6v(folder: Path, context: int) -> None:
    from transformers import (
        Glm4vConfig,
        Glm4vForConditionalGeneration,
        Glm46VImageProcessor,
        Glm46VProcessor,
        Glm46VVideoProcessor,
    )

    kinds = ("image", "video")
    marks = [mark for kind in kinds for mark in (f"<|begin_of_{kind}|>", f"<|{kind}|>", f"<|end_of_{kind}|>")]
    tokenizer = tokenizer_of(GLM_TEMPLATE, "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", *marks)
    tokenizer.add_tokens(["<think>", "</think>"])
    token = tokenizer.convert_tokens_to_ids
    processor = Glm46VProcessor(Glm46VImageProcessor(), tokenizer, Glm46VVideoProcessor(), chat_template=GLM_TEMPLATE)
    config = Glm4vConfig(
        text_config={
            **text_config(tokenizer, context),
            "eos_token_id": [token("<|endoftext|>"), token("<|user|>")],
            "rope_parameters": {**MROPE, "mrope_section": [2, 3, 3], "partial_rotary_factor": 0.5},
        },
        vision_config={**VISION, "image_size": 56, "spatial_merge_size": 2},
        image_token_id=token("<|image|>"),
        video_token_id=token("<|video|>"),
        image_start_token_id=token("<|begin_of_image|>"),
        image_end_token_id=token("<|end_of_image|>"),
        video_start_token_id=token("<|begin_of_video|>"),
        video_end_token_id=token("<|end_of_video|>"),
    )
    save(folder, Glm4vForConditionalGeneration(config), processor)


FAMILIES: dict[str, Callable[[Path, int], None]] = {
    "qwen2-vl": write_qwen2_vl,
    "qwen2.5-vl": write_qwen2_5_vl,
    "qwen3-vl": write_qwen3_vl,
    "qwen3.5": write_qwen3_5,
    "llava-onevision": write_llava_onevision,
    "internvl": write_internvl,
    "glm-4.6v": write_glm4_6v,
}
"""Functions that write a model, by family. Their arguments are a folder and the context length in tokens."""


def text_config(tokenizer: Any, context: int) -> dict[str, Any]:
    """A small language model for the tokenizer."""
    return {
        **SIZES,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": context,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def qwen_tokens(tokenizer: Any) -> dict[str, int]:
    """Token ids of the placeholders in Qwen's configurations."""
    names = {
        "video_token_id": "<|video_pad|>",
        "image_token_id": "<|image_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}


def save(folder: Path, model: Any, processor: Any) -> None:
    """Write weights, configuration, tokenizer and processor."""
    model.bfloat16().save_pretrained(folder)  # required by vLLM's linear attention on the CPU
    processor.save_pretrained(folder)


def rename_weights(folder: Path, old: str, new: str) -> None:
    """Change the beginning of some weights' names."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    weights = load_file(file)
    save_file({name.replace(old, new): tensor for name, tensor in weights.items()}, file, {"format": "pt"})


def change_json(file: Path, **values: Any) -> None:
    """Set keys of a JSON file, which is created if it does not exist."""
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**before, **values}))


def write_llava(folder: Path) -> None:
    """Write LLaVA 1.5, which supports images and no video."""
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    tokenizer = tokenizer_of(FRAME_TEMPLATE, "<image>")
    processor = LlavaProcessor(
        CLIPImageProcessor(),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=FRAME_TEMPLATE,
    )
    config = LlavaConfig(
        text_config={"model_type": "qwen2", **text_config(tokenizer, 2048)},
        vision_config={"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    save(folder, LlavaForConditionalGeneration(config), processor)


def write_qwen2(folder: Path) -> None:
    """Write a language model without vision."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = tokenizer_of(FRAME_TEMPLATE)
    save(folder, Qwen2ForCausalLM(Qwen2Config(**text_config(tokenizer, 2048))), tokenizer)
