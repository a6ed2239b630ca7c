import json
from pathlib import Path
from typing import Any

import pytest

from caption_assets.models.model_config import ModelProperties
from caption_assets.models.weights import WeightsError

pytestmark = pytest.mark.fast


def folder_with(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic"}}, "fp8"),
        (
            {"quantization_config": {"quant_method": "compressed-tensors", "format": "float-quantized"}},
            "compressed-tensors",
        ),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "bitsandbytes"),
        ({"quantization_config": {"bits": 4}}, "unknown"),
        ({"text_config": {"quantization_config": {"quant_method": "awq"}}}, "awq"),
        ({"thinker_config": {"text_config": {"quantization_config": {"quant_method": "awq"}}}}, "awq"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"quantization_config": None}, None),
        ({"text_config": {"hidden_size": 64}}, None),
    ],
)
def test_quantization_is_read_from_the_configuration(tmp_path: Path, config: Any, method: str | None) -> None:
    found = ModelProperties.read(folder_with(tmp_path, config={"model_type": "qwen2_5_vl", **config}))
    assert found == ModelProperties("qwen2_5_vl", method)


def test_quantization_may_be_in_a_separate_file(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, config={}, hf_quant_config={"quantization": {"quant_algo": "FP8"}})
    assert ModelProperties.read(folder).quantization == "modelopt"


def test_missing_configuration_gives_the_defaults(tmp_path: Path) -> None:
    assert ModelProperties.read(tmp_path) == ModelProperties("", None)


def test_configuration_that_is_not_an_object_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is not a JSON object"):
        ModelProperties.read(folder_with(tmp_path, config=[]))
