from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from caption_assets.models.model_config import parse_config
from caption_assets.models.vllm_architectures import check_supported
from caption_assets.models.weights import WeightsError
from scripts.vllm_architectures import TABLE, architectures

CODE = {"auto_map": {"AutoConfig": "configuration_it.Config", "AutoModelForCausalLM": "modeling_it.Model"}}


def config(model_type: str | None, *architectures: str, **more: Any) -> dict[str, Any]:
    return {"model_type": model_type, "architectures": list(architectures), **more}


NEED_CODE = {
    "Molmo2": config("molmo2", "Molmo2ForConditionalGeneration", **CODE),
    "Molmo2 without auto_map": config("molmo2", "Molmo2ForConditionalGeneration"),
    "Keye-VL 1.5": config("KeyeVL1_5", "KeyeVL1_5ForConditionalGeneration", **CODE),
    "Keye-VL": config("Keye", "KeyeForConditionalGeneration", **CODE),
    "Nemotron Nano VL": config("NemotronH_Nano_VL_V2", "NemotronH_Nano_VL_V2", **CODE),
    "Nemotron Nano Omni": config("NemotronH_Nano_Omni_Reasoning_V3", "NemotronH_Nano_Omni_Reasoning_V3", **CODE),
    "InternVL3.5 in its original format": config("internvl_chat", "InternVLChatModel", **CODE),
    "MiniCPM-V 4.5": config("minicpmv", "MiniCPMV", **CODE),
    "an unknown model type": config("my_vl", "MyVLForConditionalGeneration", **CODE),
    "an unknown architecture": config("qwen2_5_vl", "MyQwenForConditionalGeneration", **CODE),
}
SERVED = {
    "Qwen2-VL": config("qwen2_vl", "Qwen2VLForConditionalGeneration"),
    "Qwen2.5-VL": config("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration"),
    "Qwen2.5-VL with auto_map": config("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", **CODE),
    "Qwen3-VL": config("qwen3_vl", "Qwen3VLForConditionalGeneration"),
    "Qwen3-VL MoE": config("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration"),
    "Qwen3.5": config("qwen3_5", "Qwen3_5ForConditionalGeneration"),
    "Qwen3.5 MoE": config("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration"),
    "GLM-4.6V-Flash": config("glm4v", "Glm4vForConditionalGeneration"),
    "InternVL3.5-HF": config("internvl", "InternVLForConditionalGeneration"),
    "LLaVA-OneVision": config("llava_onevision", "LlavaOnevisionForConditionalGeneration"),
}


@pytest.mark.fast
@pytest.mark.parametrize("found", SERVED.values(), ids=list(SERVED))
def test_model_with_classes_in_vllm_is_accepted(found: dict[str, Any]) -> None:
    check_supported(found, "someone/model")


@pytest.mark.fast
@pytest.mark.parametrize("found", NEED_CODE.values(), ids=list(NEED_CODE))
def test_model_that_needs_remote_code_is_an_error(found: dict[str, Any]) -> None:
    with pytest.raises(
        WeightsError,
        match=r"someone/model needs code from its own repository, which is never run: vLLM 0\.32\.0 has no",
    ):
        check_supported(found, "someone/model")


@pytest.mark.fast
@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (
            config("qwen2_5_vl", "Tarsier2ForConditionalGeneration"),
            r"vLLM 0\.32\.0 no longer supports someone/model, but 0\.23\.0 and earlier do",
        ),
        (
            config("qwen3", "Qwen3ForCausalLM"),
            r"vLLM 0\.32\.0 does not support someone/model as a video model \(model type 'qwen3'",
        ),
        (config("perception_lm", "PerceptionLMForConditionalGeneration"), "as a video model"),
        ({}, "model type None"),
        ({"model_type": ["a"], "architectures": "b"}, "as a video model"),
    ],
)
def test_unsupported_model_is_an_error(found: dict[str, Any], reason: str) -> None:
    with pytest.raises(WeightsError, match=reason):
        check_supported(found, "someone/model")


@pytest.mark.fast
@pytest.mark.parametrize("found", [config("qwen3", "Qwen3ForCausalLM"), *SERVED.values()])
def test_language_model_may_be_any_model_with_classes_in_vllm(found: dict[str, Any]) -> None:
    check_supported(found, "someone/model", video=False)


@pytest.mark.fast
def test_model_that_generates_no_text_is_an_error() -> None:
    with pytest.raises(WeightsError, match=r"as a language model .*: choose another model, such as Qwen/Qwen2"):
        check_supported(config("bert", "BertModel"), "someone/model", video=False)


@pytest.mark.fast
@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"{"])
def test_invalid_config_is_an_error(content: bytes) -> None:
    with pytest.raises(WeightsError, match=r"a/config\.json is not .*JSON"):
        parse_config(content, "a/config.json")


@pytest.mark.engine
def test_table_matches_the_installed_vllm() -> None:
    assert json.loads(TABLE.read_text()) == architectures(), "run python -m scripts.vllm_architectures"


@pytest.mark.engine
@pytest.mark.parametrize("found", NEED_CODE.values(), ids=list(NEED_CODE))
def test_vllm_rejects_the_models_rejected_here(found: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"trust_remote_code|not recognize|not supported"):
        resolve(found, tmp_path)


@pytest.mark.engine
@pytest.mark.parametrize("name", ["Qwen2.5-VL with auto_map", "Qwen3.5", "GLM-4.6V-Flash", "InternVL3.5-HF"])
def test_vllm_accepts_the_models_accepted_here(name: str, tmp_path: Path) -> None:
    resolve(SERVED[name], tmp_path)


def resolve(found: dict[str, Any], folder: Path) -> None:
    """Have vLLM resolve a model's class, as its engine does."""
    from vllm.config import ModelConfig

    (folder / "config.json").write_text(json.dumps(found))
    ModelConfig(model=str(folder), tokenizer=str(folder), skip_tokenizer_init=True, trust_remote_code=False)
