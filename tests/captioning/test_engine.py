from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from dataclasses import fields, replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from caption_assets.captioning.budget import FrameGrid
from caption_assets.captioning.engine import (
    CaptionEngine,
    EngineConfig,
    EngineCrashed,
    EngineError,
    engine_arguments,
    start_engine,
    video_metadata,
)
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.request import Request, RequestFailed
from caption_assets.captioning.sampling import SamplingParams
from caption_assets.models.variants import QWEN3, QWEN25, find_variant
from caption_assets.video.decode import Frames
from tests.captioning.families import FAMILIES
from tests.captioning.front_end import build_front_end, start_front_end
from tests.conftest import RunAsync
from tests.processes import engine_processes
from tests.stages import STAGE1


@pytest.mark.fast
def test_engine_arguments_for_qwen_are_those_of_the_reference() -> None:
    arguments = engine_arguments(Path("/m"), Recipe(QWEN25, fp8=True), EngineConfig())
    assert arguments["limit_mm_per_prompt"] == {"image": 0, "video": 1}
    assert arguments["max_model_len"] == arguments["max_num_batched_tokens"] == 32768
    assert arguments["gpu_memory_utilization"] == 0.85
    assert arguments["mm_processor_cache_gb"] == 4
    assert "visual.*" in arguments["quantization_config"]["ignore"]


@pytest.mark.fast
@pytest.mark.parametrize(
    ("name", "setting"), [("dtype", "CAPTION_DTYPE"), ("quantization", "CAPTION_FP8"), ("model", "CAPTION_MODEL")]
)
def test_argument_with_its_own_setting_is_refused_and_the_setting_is_named(name: str, setting: str) -> None:
    with pytest.raises(EngineError, match=f"CAPTION_ENGINE_ARGS contains {name}, .*{setting}"):
        engine_arguments(Path("/m"), Recipe(), EngineConfig(engine_args={name: "x"}))


@pytest.mark.fast
def test_engine_arguments_without_fp8_have_no_quantization() -> None:
    assert "quantization" not in engine_arguments(Path("/m"), Recipe(), EngineConfig())


def model_with_config(folder: Path, **config: object) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl", **config}))
    return folder


@pytest.mark.fast
@pytest.mark.parametrize("method", ["awq", "gptq", "fp8", "compressed-tensors"])
def test_quantized_weights_are_not_quantized_again(tmp_path: Path, method: str) -> None:
    folder = model_with_config(tmp_path, quantization_config={"quant_method": method})
    arguments = engine_arguments(folder, Recipe(QWEN25, fp8=True), EngineConfig())
    assert arguments.keys().isdisjoint({"quantization", "quantization_config"})
    assert arguments["dtype"] == "auto"  # on a T4 AWQ's kernels support half precision only


@pytest.mark.fast
def test_dtype_setting_overrides_the_model(tmp_path: Path) -> None:
    quantized = model_with_config(tmp_path, quantization_config={"quant_method": "awq"})
    for folder in (Path("/m"), quantized):
        assert engine_arguments(folder, Recipe(QWEN25, dtype="float16"), EngineConfig())["dtype"] == "float16"
    assert engine_arguments(Path("/m"), Recipe(QWEN25), EngineConfig())["dtype"] == "bfloat16"


@pytest.mark.fast
def test_model_from_a_folder_uses_context_and_dtype_of_its_files(tmp_path: Path) -> None:
    arguments = engine_arguments(model_with_config(tmp_path), Recipe(find_variant(str(tmp_path), "v1")), EngineConfig())
    assert (arguments["max_model_len"], arguments["dtype"]) == (-1, "auto")


@pytest.mark.fast
@pytest.mark.parametrize(
    ("model_type", "is_resized"), [("qwen3_vl", False), ("qwen3_5_moe", False), ("internvl", True)]
)
def test_processor_resizes_frames_of_other_families_only(tmp_path: Path, model_type: str, is_resized: bool) -> None:
    folder = model_with_config(tmp_path, model_type=model_type)
    arguments = engine_arguments(folder, Recipe(find_variant(str(tmp_path), "v1")), EngineConfig())
    assert ("mm_processor_kwargs" not in arguments) == is_resized


@pytest.mark.engine
def test_engine_arguments_are_arguments_of_the_installed_vllm() -> None:
    from vllm import AsyncEngineArgs

    known = {field.name for field in fields(AsyncEngineArgs)}
    for recipe in (Recipe(), Recipe(QWEN25, fp8=True), Recipe(QWEN3, fp8=True)):
        assert engine_arguments(Path("/m"), recipe, EngineConfig()).keys() <= known


@pytest.mark.fast
@pytest.mark.parametrize("name", ["model", "trust_remote_code", "quantization", "tensor_parallel_size"])
def test_reserved_engine_arguments_are_refused(name: str) -> None:
    with pytest.raises(EngineError, match=f"CAPTION_ENGINE_ARGS contains {name}"):
        engine_arguments(Path("/m"), Recipe(), EngineConfig(engine_args={name: "x"}))


@pytest.mark.engine
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_num_seq": 4}, "no engine argument 'max_num_seq' .did you mean 'max_num_seqs'?"),
        ({"max_num_seqs": -4}, "did not start"),
    ],
)
def test_invalid_arguments_are_refused_before_a_process_is_started(
    model_folder: Path, arguments: dict[str, int], message: str
) -> None:
    async def start() -> None:
        async with start_engine(model_folder, Recipe(), EngineConfig(engine_args=arguments)):
            raise AssertionError("the engine started")

    before = engine_processes(os.getpid())
    with pytest.raises(EngineError, match=message):
        asyncio.run(start())
    assert engine_processes(os.getpid()).keys() <= before.keys()


def noise(frames: int, height: int, width: int, fps: float = 2.0) -> Frames:
    pixels = np.random.default_rng(frames).integers(0, 255, (frames, height, width, 3), dtype=np.uint8)
    return Frames(pixels, tuple(range(frames)), fps)


def request_of(engine: CaptionEngine, frames: Frames, instruction: str, **generation: int) -> Request:
    """A request with a unique video id."""
    return Request(uuid4().hex, frames, engine.render(instruction), SamplingParams(**generation), stage=1)


GRIDS = [(2, 28, 28), (4, 112, 112), (8, 112, 140), (12, 84, 140), (32, 56, 224), (20, 140, 140), (96, 112, 112)]


@pytest.mark.engine
@pytest.mark.parametrize(("frames", "height", "width"), GRIDS)
@pytest.mark.parametrize("fps", [0.37, 2.0])
def test_prompt_has_the_predicted_length(
    engine: CaptionEngine, run_async: RunAsync[Any], frames: int, height: int, width: int, fps: float
) -> None:
    request = request_of(engine, noise(frames, height, width, fps), "What is it?")
    prepared = run_async(engine._prepare(request, with_pixels=True))
    predicted = engine.text_tokens(request.prompt) + run_async(
        engine.video_tokens(FrameGrid(frames, height, width), fps)
    )
    assert len(prepared["prompt_token_ids"]) == predicted


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory, run_async: RunAsync[Any]) -> CaptionEngine:
    folder = tmp_path_factory.mktemp("qwen3")
    FAMILIES["qwen3-vl"](folder, 8192)
    recipe = Recipe(QWEN3, generation=SamplingParams(max_output_tokens=64))
    return run_async(start_front_end(folder, recipe, max_model_len=8192))  # type: ignore[no-any-return]


@pytest.mark.engine
@pytest.mark.parametrize(("frames", "height", "width"), [(2, 64, 64), (4, 128, 160), (12, 96, 128), (40, 64, 96)])
@pytest.mark.parametrize("fps", [0.1, 0.37, 2.0])
def test_qwen3_prompt_with_timestamps_has_the_predicted_length(
    qwen3: CaptionEngine, run_async: RunAsync[Any], frames: int, height: int, width: int, fps: float
) -> None:
    request = request_of(qwen3, noise(frames, height, width, fps), "What is it?")
    prepared = run_async(qwen3._prepare(request, with_pixels=True))
    predicted = qwen3.text_tokens(request.prompt) + run_async(qwen3.video_tokens(FrameGrid(frames, height, width), fps))
    assert len(prepared["prompt_token_ids"]) == predicted


@pytest.mark.engine
def test_answer_at_the_output_limit_finishes_by_length(engine: CaptionEngine, run_async: RunAsync[Any]) -> None:
    request = request_of(engine, noise(4, 112, 112), STAGE1.prompt, max_output_tokens=2)
    answer = run_async(engine.complete(request))
    assert (answer.finish_reason, answer.output_tokens) == ("length", 2)


@pytest.mark.engine
def test_prompt_longer_than_the_context_is_refused_and_the_engine_keeps_running(
    engine: CaptionEngine, run_async: RunAsync[Any]
) -> None:
    with pytest.raises(RequestFailed, match="2048") as refused:
        run_async(engine.complete(request_of(engine, noise(4, 112, 112), "word " * 5000, max_output_tokens=2)))
    assert refused.value.kind == "refused"
    assert run_async(engine.complete(request_of(engine, noise(4, 112, 112), STAGE1.prompt))).text


@pytest.mark.engine
def test_unexpected_error_fails_its_request_and_the_engine_keeps_running(
    engine: CaptionEngine, run_async: RunAsync[Any]
) -> None:
    timeless = replace(noise(4, 112, 112), fps=0.0)
    with pytest.raises(RequestFailed, match="division by zero") as refused:
        run_async(engine.complete(request_of(engine, timeless, STAGE1.prompt)))
    assert refused.value.kind == "refused"
    assert run_async(engine.complete(request_of(engine, noise(4, 112, 112), STAGE1.prompt))).text


@pytest.mark.engine
@pytest.mark.parametrize(("is_busy", "expected"), [(True, RequestFailed), (False, EngineCrashed)])
def test_timeout_fails_one_request_of_a_busy_engine_and_crashes_an_idle_one(
    model_folder: Path, is_busy: bool, expected: type[Exception]
) -> None:
    """vLLM's front end prepares the requests; only the answers are scripted. test_faults has an engine that hangs."""
    calls = count()

    async def generate(prompt: object, *args: object, **options: object) -> AsyncIterator[Any]:
        if next(calls) == 0:  # the first request
            await asyncio.sleep(60)
        answer = SimpleNamespace(text="a red circle", finish_reason="stop", token_ids=[1, 2, 3])
        yield SimpleNamespace(outputs=[answer], prompt_token_ids=[0], num_cached_tokens=0)

    async def run() -> Exception:
        front_end = await build_front_end(model_folder, Recipe())
        front_end._llm.generate = generate
        engine = CaptionEngine(front_end._llm, Recipe(), EngineConfig(request_timeout_seconds=3.0))

        async def others() -> None:
            while is_busy:
                await engine.complete(request_of(engine, noise(4, 112, 112), "What is it?"))

        first = asyncio.create_task(engine.complete(request_of(engine, noise(4, 112, 112), "What is it?")))
        await asyncio.sleep(0.5)
        working = asyncio.create_task(others())
        [error] = await asyncio.gather(first, return_exceptions=True)
        working.cancel()
        assert isinstance(error, Exception)
        return error

    error = asyncio.run(run())
    assert type(error) is expected
    assert "CAPTION_REQUEST_TIMEOUT_SECONDS" in str(error)


@pytest.mark.engine
def test_capacity_follows_from_the_memory_of_the_engine(engine: CaptionEngine) -> None:
    capacity = engine.capacity
    assert capacity.windows == 64
    assert 0 < capacity.tokens < 10**6
    assert capacity.cache_bytes == 2**28
    load = engine.load(FrameGrid(8, 112, 112), 64, 100)
    assert (load.tokens, load.frame_bytes) == (164, 8 * 112 * 112 * 3)


@pytest.mark.engine
def test_cached_video_takes_at_most_the_estimated_bytes(engine: CaptionEngine, run_async: RunAsync[Any]) -> None:
    from vllm.multimodal.cache.base import MultiModalCache

    grid = FrameGrid(16, 112, 140)

    prepared = run_async(engine._prepare(request_of(engine, noise(16, 112, 140), "x"), with_pixels=True))
    [item] = prepared["mm_kwargs"]["video"]
    estimated = engine.load(grid, run_async(engine.video_tokens(grid, 2.0)), 0).cache_bytes
    assert estimated / 2 <= MultiModalCache.get_item_size(item) <= estimated


@pytest.mark.engine
def test_frame_rate_determines_the_temporal_positions(model_folder: Path) -> None:
    """The model's own processor computes the seconds between temporal patches of two frames from the metadata."""
    from transformers import AutoProcessor

    video = replace(noise(8, 112, 112), fps=1.25)
    metadata = {name: value for name, value in video_metadata(video).items() if name != "do_sample_frames"}
    prepared = AutoProcessor.from_pretrained(model_folder)(
        text=["<|vision_start|><|video_pad|><|vision_end|>"],
        videos=[video.pixels],
        video_metadata=[metadata],
        do_sample_frames=False,
        do_resize=False,
    )
    assert list(prepared["second_per_grid_ts"]) == pytest.approx([2 / 1.25])
