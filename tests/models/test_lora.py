from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from caption_assets.models.checkpoint import Lora
from caption_assets.models.lora import (
    HIDDEN,
    adapts_vision,
    check_fit,
    find_lora,
    is_same_base,
    parse_adapter_config,
    read_adapter_config,
)
from caption_assets.models.variants import UnknownModel, find_variant
from caption_assets.models.weights import WeightsError
from tests.models.adapters import LANGUAGE, OLD_NAMES, VISION, Modules, adapter_files, write_adapter

pytestmark = pytest.mark.fast

SAMPLE_FOLDER = Path(str(files("caption_assets.sample") / "model"))
OTHER_SIZE: Modules = dict.fromkeys(LANGUAGE, (256, 256))


def test_adapter_is_given_by_hub_id_or_folder() -> None:
    assert find_lora("someone/adapter", "5" * 40) == Lora("someone/adapter", "5" * 40)
    assert find_lora("/out/final/", "v1") == Lora("local/final", "v1", path="/out/final")
    assert find_lora("s3://bucket/out/final/", "v1").path == "s3://bucket/out/final"


def test_adapter_and_model_of_the_same_name_have_separate_mirrors() -> None:
    assert find_lora("/out/final", "v1").folder == f"lora--{find_variant('/out/final', 'v1').folder}"


@pytest.mark.parametrize(
    ("name", "revision", "reason"),
    [
        ("adapter", "abc", "unknown adapter 'adapter': give a Hub id"),
        ("someone/adapter", None, "needs CAPTION_LORA_REVISION"),
        ("/out/final", "a/../b", "needs CAPTION_LORA_REVISION"),
        ("/out/final", "..", "needs CAPTION_LORA_REVISION"),
    ],
)
def test_adapter_without_name_or_revision_is_an_error(name: str, revision: str | None, reason: str) -> None:
    with pytest.raises(UnknownModel, match=reason):
        find_lora(name, revision)


def test_rank_is_that_of_the_largest_module() -> None:
    content = {"peft_type": "LORA", "r": 8, "rank_pattern": {"q_proj": 32}, "base_model_name_or_path": "a/b"}
    found = parse_adapter_config(json.dumps(content).encode(), "a")
    assert (found.rank, found.base) == (32, "a/b")


def test_base_with_credentials_is_hidden() -> None:
    content = {"r": 8, "base_model_name_or_path": "https://user:hunter2@models.example/x"}
    found = parse_adapter_config(json.dumps(content).encode(), "a")
    assert found.base == HIDDEN
    assert not is_same_base(found.base, "a/x")


@pytest.mark.parametrize(
    "content",
    [b'{"peft_type": "IA3", "r": 8}', b'{"peft_type": "LORA"}', b'{"r": "8"}', b'{"r": 0}', b"[]", b"", b'{"r": true}'],
)
def test_invalid_adapter_config_is_an_error(content: bytes) -> None:
    with pytest.raises(WeightsError, match=r"a/adapter_config\.json"):
        parse_adapter_config(content, "a/adapter_config.json")


def test_missing_adapter_config_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"cannot read .*adapter_config"):
        read_adapter_config(tmp_path)


@pytest.mark.parametrize(
    ("base", "model", "same"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct", True),
        ("unsloth/qwen2.5-vl-7b-instruct", "Qwen/Qwen2.5-VL-7B-Instruct", True),
        ("/models/Qwen2.5-VL-7B-Instruct/", "Qwen/Qwen2.5-VL-7B-Instruct", True),
        ("/hub/models--Qwen--Qwen2.5-VL-7B-Instruct/snapshots/cc5948", "Qwen/Qwen2.5-VL-7B-Instruct", True),
        ("/cache/modelscope/models/Qwen/Qwen2___5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct", True),
        (None, "Qwen/Qwen2.5-VL-7B-Instruct", True),
        ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct", False),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "local/my-model", False),
    ],
)
def test_base_is_compared_by_name(base: str | None, model: str, same: bool) -> None:
    assert is_same_base(base, model) is same


@pytest.mark.parametrize("modules", [LANGUAGE, OLD_NAMES, VISION, {**LANGUAGE, **VISION}])
def test_adapter_of_the_model_fits(tmp_path: Path, modules: Modules) -> None:
    adapter = write_adapter(tmp_path, adapter_files(modules))
    assert check_fit(adapter, SAMPLE_FOLDER) == ()
    assert adapts_vision(adapter) is any("visual" in name for name in modules)


def test_adapter_of_a_different_size_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"q_proj is 256, but the model's is 192"):
        check_fit(write_adapter(tmp_path, adapter_files(OTHER_SIZE)), SAMPLE_FOLDER)


@pytest.mark.parametrize("module", ["transformer.h.0.q_proj", "model.language_model.layers.9.self_attn.q_proj"])
def test_adapter_without_common_modules_is_an_error(tmp_path: Path, module: str) -> None:
    with pytest.raises(WeightsError, match=f"the model has none of its 1 modules, such as .*{module}"):
        check_fit(write_adapter(tmp_path, adapter_files({module: (192, 192)})), SAMPLE_FOLDER)


def test_modules_missing_from_the_model_are_returned(tmp_path: Path) -> None:
    deeper = "model.language_model.layers.4.self_attn.q_proj"
    adapter = write_adapter(tmp_path, adapter_files({**LANGUAGE, deeper: (192, 192)}))
    assert check_fit(adapter, SAMPLE_FOLDER) == (f"base_model.model.{deeper}",)


def test_empty_adapter_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="contains no LoRA weights"):
        check_fit(write_adapter(tmp_path, adapter_files({})), SAMPLE_FOLDER)


def test_packed_weights_and_experts_are_not_compared(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    packed = {"model.layers.0.self_attn.q_proj.qweight": np.zeros((24, 192), np.int32)}
    save_file(packed, model / "model.safetensors")
    modules = {"model.layers.0.self_attn.q_proj": (192, 192), "model.layers.0.mlp.experts.3.up_proj": (192, 64)}
    assert check_fit(write_adapter(tmp_path / "adapter", adapter_files(modules)), model) == ()
