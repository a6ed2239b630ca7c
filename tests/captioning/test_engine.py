from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caption_assets.captioning.budget import FrameGrid, visual_tokens
from caption_assets.captioning.engine import (
    CaptionEngine,
    EngineConfig,
    RequestRefused,
    engine_arguments,
    video_metadata,
)
from caption_assets.captioning.recipe import Generation, Recipe
from caption_assets.captioning.request import Request
from caption_assets.clips.decode import Frames
from caption_assets.models.variants import QWEN25
from tests.conftest import Ask


@pytest.mark.fast
def test_the_references_engine_is_built_for_qwen() -> None:
    arguments = engine_arguments(Path("/m"), Recipe(QWEN25, fp8=True), EngineConfig())
    assert arguments["limit_mm_per_prompt"] == {"image": 0, "video": 1}
    assert arguments["max_model_len"] == arguments["max_num_batched_tokens"] == 32768
    assert arguments["gpu_memory_utilization"] == 0.85
    assert arguments["mm_processor_cache_gb"] == 4
    assert arguments["quantization_config"] == {"ignore": ["visual.*"]}


@pytest.mark.fast
def test_without_fp8_nothing_is_quantised() -> None:
    assert "quantization" not in engine_arguments(Path("/m"), Recipe(), EngineConfig())


@pytest.mark.engine
def test_vllm_knows_every_argument() -> None:
    import vllm

    for recipe in (Recipe(), Recipe(QWEN25, fp8=True)):
        vllm.AsyncEngineArgs(**engine_arguments(Path("/m"), recipe, EngineConfig()))


def noise(frames: int, height: int, width: int) -> Frames:
    pixels = np.random.default_rng(frames).integers(0, 255, (frames, height, width, 3), dtype=np.uint8)
    return Frames(pixels, tuple(range(frames)), 2.0)


@pytest.mark.engine
@pytest.mark.parametrize(("frames", "height", "width"), [(4, 112, 112), (8, 112, 140), (12, 84, 140)])
def test_the_prompt_is_as_long_as_predicted(
    engine: CaptionEngine, ask: Ask[Any], frames: int, height: int, width: int
) -> None:
    video = noise(frames, height, width)
    answer = ask(engine.complete(Request(f"length-{frames}", video, "Say."), Generation(max_output_tokens=1)))
    overhead = ask(engine.complete(Request("length-0", noise(2, 28, 28), "Say."), Generation(max_output_tokens=1)))
    expected = overhead.prompt_tokens - 1 + visual_tokens(FrameGrid(frames, height, width), 28)
    assert answer.prompt_tokens == expected


@pytest.mark.engine
def test_a_cut_off_answer_says_so(engine: CaptionEngine, ask: Ask[Any]) -> None:
    request = Request("cut", noise(4, 112, 112), Recipe().prompt.stage1)
    answer = ask(engine.complete(request, Generation(max_output_tokens=2)))
    assert (answer.finish_reason, answer.output_tokens) == ("length", 2)


@pytest.mark.engine
def test_a_prompt_over_the_context_is_refused_and_the_engine_lives_on(engine: CaptionEngine, ask: Ask[Any]) -> None:
    request = Request("long", noise(4, 112, 112), "word " * 5000)
    with pytest.raises(RequestRefused, match="2048"):
        ask(engine.complete(request, Generation(max_output_tokens=2)))
    request = replace(request, instruction=Recipe().prompt.stage1)
    assert ask(engine.complete(request, Generation())).text


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
