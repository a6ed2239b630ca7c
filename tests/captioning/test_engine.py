from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
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
from caption_assets.captioning.recipe import Recipe, SamplingParams
from caption_assets.captioning.request import Request, RequestFailed
from caption_assets.models.variants import QWEN3, QWEN25, find_variant
from caption_assets.video.decode import Frames
from tests.captioning.families import FAMILIES
from tests.captioning.front_end import start_front_end
from tests.conftest import Ask
from tests.processes import engine_processes


@pytest.mark.fast
def test_the_references_engine_is_built_for_qwen() -> None:
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
def test_an_argument_that_has_a_setting_of_its_own_is_refused_with_its_name(name: str, setting: str) -> None:
    with pytest.raises(EngineError, match=f"CAPTION_ENGINE_ARGS contains {name}, .*{setting}"):
        engine_arguments(Path("/m"), Recipe(), EngineConfig(engine_args={name: "x"}))


@pytest.mark.fast
def test_without_fp8_nothing_is_quantised() -> None:
    assert "quantization" not in engine_arguments(Path("/m"), Recipe(), EngineConfig())


def folder_of(folder: Path, **config: object) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl", **config}))
    return folder


@pytest.mark.fast
@pytest.mark.parametrize("method", ["awq", "gptq", "fp8", "compressed-tensors"])
def test_weights_that_are_quantised_already_stay_as_they_are(tmp_path: Path, method: str) -> None:
    folder = folder_of(tmp_path, quantization_config={"quant_method": method})
    arguments = engine_arguments(folder, Recipe(QWEN25, fp8=True), EngineConfig())
    assert arguments.keys().isdisjoint({"quantization", "quantization_config"})
    assert arguments["dtype"] == "auto"  # AWQ's kernels on a T4 take half precision alone


@pytest.mark.fast
def test_a_dtype_that_is_set_goes_before_the_models(tmp_path: Path) -> None:
    quantised = folder_of(tmp_path, quantization_config={"quant_method": "awq"})
    for folder in (Path("/m"), quantised):
        assert engine_arguments(folder, Recipe(QWEN25, dtype="float16"), EngineConfig())["dtype"] == "float16"
    assert engine_arguments(Path("/m"), Recipe(QWEN25), EngineConfig())["dtype"] == "bfloat16"


@pytest.mark.fast
def test_a_model_by_folder_has_the_context_and_the_dtype_of_its_files(tmp_path: Path) -> None:
    arguments = engine_arguments(folder_of(tmp_path), Recipe(find_variant(str(tmp_path), "v1")), EngineConfig())
    assert (arguments["max_model_len"], arguments["dtype"]) == (-1, "auto")


@pytest.mark.fast
@pytest.mark.parametrize(
    ("model_type", "is_resized"), [("qwen3_vl", False), ("qwen3_5_moe", False), ("internvl", True)]
)
def test_frames_are_sized_here_where_the_processor_takes_them_as_they_are(
    tmp_path: Path, model_type: str, is_resized: bool
) -> None:
    folder = folder_of(tmp_path, model_type=model_type)
    arguments = engine_arguments(folder, Recipe(find_variant(str(tmp_path), "v1")), EngineConfig())
    assert ("mm_processor_kwargs" not in arguments) == is_resized


@pytest.mark.engine
def test_vllm_knows_every_argument() -> None:
    import vllm

    for recipe in (Recipe(), Recipe(QWEN25, fp8=True), Recipe(QWEN3, fp8=True)):
        vllm.AsyncEngineArgs(**engine_arguments(Path("/m"), recipe, EngineConfig()))


@pytest.mark.fast
@pytest.mark.parametrize("name", ["model", "trust_remote_code", "quantization", "tensor_parallel_size"])
def test_arguments_that_are_the_projects_own_are_refused(name: str) -> None:
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
def test_wrong_arguments_are_told_before_anything_is_started(
    model_folder: Path, arguments: dict[str, int], message: str
) -> None:
    async def start() -> None:
        async with start_engine(model_folder, Recipe(), EngineConfig(engine_args=arguments)):
            raise AssertionError("it started")

    before = engine_processes(os.getpid())
    with pytest.raises(EngineError, match=message):
        asyncio.run(start())
    assert engine_processes(os.getpid()).keys() <= before.keys()


def noise(frames: int, height: int, width: int, fps: float = 2.0) -> Frames:
    pixels = np.random.default_rng(frames).integers(0, 255, (frames, height, width, 3), dtype=np.uint8)
    return Frames(pixels, tuple(range(frames)), fps)


def request_of(engine: CaptionEngine, frames: Frames, instruction: str, **generation: int) -> Request:
    """A request under an id of its own."""
    return Request(uuid4().hex, frames, engine.render(instruction), SamplingParams(**generation), stage=1)


GRIDS = [(2, 28, 28), (4, 112, 112), (8, 112, 140), (12, 84, 140), (32, 56, 224), (20, 140, 140), (96, 112, 112)]


@pytest.mark.engine
@pytest.mark.parametrize(("frames", "height", "width"), GRIDS)
@pytest.mark.parametrize("fps", [0.37, 2.0])
def test_the_prompt_is_as_long_as_predicted(
    engine: CaptionEngine, ask: Ask[Any], frames: int, height: int, width: int, fps: float
) -> None:
    request = request_of(engine, noise(frames, height, width, fps), "What is it?")
    prepared = ask(engine._prepare(request, with_pixels=True))
    predicted = ask(engine.prompt_tokens(request.prompt, FrameGrid(frames, height, width), fps))
    assert len(prepared["prompt_token_ids"]) == predicted


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory, ask: Ask[Any]) -> CaptionEngine:
    folder = tmp_path_factory.mktemp("qwen3")
    FAMILIES["qwen3-vl"](folder, 8192)
    recipe = Recipe(QWEN3, generation=SamplingParams(max_output_tokens=64))
    return ask(start_front_end(folder, recipe, max_model_len=8192))  # type: ignore[no-any-return]


@pytest.mark.engine
@pytest.mark.parametrize(("frames", "height", "width"), [(2, 64, 64), (4, 128, 160), (12, 96, 128), (40, 64, 96)])
@pytest.mark.parametrize("fps", [0.1, 0.37, 2.0])
def test_the_prompt_of_qwen3_with_its_time_stamps_is_as_long_as_predicted(
    qwen3: CaptionEngine, ask: Ask[Any], frames: int, height: int, width: int, fps: float
) -> None:
    request = request_of(qwen3, noise(frames, height, width, fps), "What is it?")
    prepared = ask(qwen3._prepare(request, with_pixels=True))
    predicted = ask(qwen3.prompt_tokens(request.prompt, FrameGrid(frames, height, width), fps))
    assert len(prepared["prompt_token_ids"]) == predicted


@pytest.mark.engine
def test_a_cut_off_answer_says_so(engine: CaptionEngine, ask: Ask[Any]) -> None:
    request = request_of(engine, noise(4, 112, 112), Recipe().prompt.stage1, max_output_tokens=2)
    answer = ask(engine.complete(request))
    assert (answer.finish_reason, answer.output_tokens) == ("length", 2)


@pytest.mark.engine
def test_a_prompt_over_the_context_is_refused_and_the_engine_lives_on(engine: CaptionEngine, ask: Ask[Any]) -> None:
    with pytest.raises(RequestFailed, match="2048") as refused:
        ask(engine.complete(request_of(engine, noise(4, 112, 112), "word " * 5000, max_output_tokens=2)))
    assert refused.value.kind == "refused"
    assert ask(engine.complete(request_of(engine, noise(4, 112, 112), Recipe().prompt.stage1))).text


@pytest.mark.engine
def test_an_error_that_nobody_foresaw_fails_its_own_request_and_the_engine_lives_on(
    engine: CaptionEngine, ask: Ask[Any]
) -> None:
    timeless = replace(noise(4, 112, 112), fps=0.0)
    with pytest.raises(RequestFailed, match="division by zero") as refused:
        ask(engine.complete(request_of(engine, timeless, Recipe().prompt.stage1)))
    assert refused.value.kind == "refused"
    assert ask(engine.complete(request_of(engine, noise(4, 112, 112), Recipe().prompt.stage1))).text


@pytest.mark.fast
@pytest.mark.parametrize(("others_get_answers", "expected"), [(True, RequestFailed), (False, EngineCrashed)])
def test_a_late_answer_fails_alone_where_the_engine_is_at_work_and_else_the_engine_is_dead(
    others_get_answers: bool, expected: type[Exception]
) -> None:
    """The clock alone: what a real engine does when it hangs is in test_faults."""
    multimodal = SimpleNamespace(mm_processor_cache_gb=1.0)
    model = SimpleNamespace(get_multimodal_config=lambda: multimodal)
    llm = SimpleNamespace(vllm_config=None, model_config=model, get_tokenizer=lambda: None)

    async def run() -> Exception:
        engine = CaptionEngine(llm, Recipe(), EngineConfig(request_timeout_seconds=0.4))

        async def others() -> None:
            while others_get_answers:
                engine._last_output_at = asyncio.get_running_loop().time()
                await asyncio.sleep(0.01)

        working = asyncio.create_task(others())
        late, *_ = await asyncio.gather(engine._with_timeout(asyncio.sleep(60)), return_exceptions=True)
        working.cancel()
        assert isinstance(late, Exception)
        return late

    error = asyncio.run(run())
    assert type(error) is expected
    assert "0.4" in str(error)


@pytest.mark.engine
def test_what_is_under_way_is_bounded_by_the_engines_own_memory(engine: CaptionEngine) -> None:
    capacity = engine.capacity
    assert capacity.windows == 64
    assert 0 < capacity.tokens < 10**6
    assert capacity.cache_bytes == 2**28
    load = engine.load(FrameGrid(8, 112, 112), 64, 100)
    assert (load.tokens, load.frame_bytes) == (164, 8 * 112 * 112 * 3)


@pytest.mark.engine
def test_a_video_in_the_cache_takes_no_more_than_is_reckoned(engine: CaptionEngine, ask: Ask[Any]) -> None:
    from vllm.multimodal.cache.base import MultiModalCache

    grid = FrameGrid(16, 112, 140)

    prepared = ask(engine._prepare(request_of(engine, noise(16, 112, 140), "x"), with_pixels=True))
    [item] = prepared["mm_kwargs"]["video"]
    reckoned = engine.load(grid, ask(engine.video_tokens(grid, 2.0)), 0).cache_bytes
    assert reckoned / 2 <= MultiModalCache.get_item_size(item) <= reckoned


@pytest.mark.engine
def test_the_true_rate_reaches_the_temporal_positions(model_folder: Path) -> None:
    """What the model's own processor makes of the metadata: seconds between temporal patches, two frames each."""
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
