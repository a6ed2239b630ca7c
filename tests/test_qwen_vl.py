"""Tests of ``QwenVL``, the replacement for NeMo Curator's class, with inputs as NeMo Curator's stages make them."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.captioning.engine import EngineCrashed
from caption_assets.captioning.loop_thread import LoopThread
from caption_assets.captioning.recipe_file import built_in
from caption_assets.captioning.request import Completion, Request, RequestFailed
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.models.source import find_source
from caption_assets.models.variants import SAMPLE, VARIANTS, find_variant
from caption_assets.models.weights import MANIFEST, WeightsError
from caption_assets.qwen_vl import CaptionsIncomplete, QwenVL
from caption_assets.qwen_vl.given_video import GivenVideo, as_frames
from caption_assets.qwen_vl.stage2_prompt import second_prompt
from caption_assets.sample.clips import SampleClip, encode, random_clip
from tests.captioning.fake_engine import FakeEngine, start_fake_engine
from tests.models.files import MODEL, SHARD, write_snapshot
from tests.models.hub_server import HubServer
from tests.videos import decode

STAGE1, STAGE2 = built_in("general").stages
TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|><|video_pad|>"
    "<|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n"
)


@pytest.mark.fast
def test_constructor_has_the_defaults_of_the_reference() -> None:
    model = QwenVL("/models", "qwen", 16)
    assert (model.fp8, model.max_output_tokens, model.model_does_preprocess) == (True, 512, False)
    assert (model.disable_mmcache, model.verbose) == (False, False)
    assert model.stage2_prompt == "Please refine this caption: "
    assert model.model_id_names == ["Qwen/Qwen2.5-VL-7B-Instruct"]


@pytest.mark.fast
def test_positions_are_those_of_the_earlier_reference() -> None:
    model = QwenVL("/models", "qwen", 16, False, 256, True, True, "Refine: ", True)
    assert (model.fp8, model.max_output_tokens, model.model_does_preprocess) == (False, 256, True)
    assert (model.disable_mmcache, model.stage2_prompt, model.verbose) == (True, "Refine: ", True)
    with pytest.raises(TypeError, match=r"not 'Refine: ': give arguments after max_output_tokens by keyword"):
        QwenVL("/models", "qwen", 16, False, 256, True, "Refine: ")  # type: ignore[arg-type]  # the later positions


@pytest.mark.fast
def test_engine_argument_that_the_class_sets_is_refused() -> None:
    with pytest.raises(TypeError, match="sets vLLM's quantization, trust_remote_code itself"):
        QwenVL("/models", "qwen", 16, trust_remote_code=True, quantization="fp8", dtype="half", max_num_seqs=8)


@pytest.mark.fast
def test_setup_without_vllm_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r"pip install .*caption-assets\[gpu\]"):
        QwenVL("/models", "sample", 16, fp8=False).setup()


@pytest.mark.fast
def test_generate_before_setup_is_refused() -> None:
    with pytest.raises(RuntimeError, match="setup"):
        QwenVL("/models", "sample", 16).generate([])


@pytest.mark.fast
@given(st.text(), st.text())
def test_second_prompt_replaces_user_prompt(before: str, text: str) -> None:
    assert second_prompt(f"{before}user_prompt.", text) == f"{before}{text}."


@pytest.mark.fast
@pytest.mark.parametrize("text", [r"\d \g<1>", "9 {caption}", '"', "plain"])
def test_second_prompt_without_user_prompt_replaces_the_text_after_the_video(text: str) -> None:
    assert second_prompt(TEMPLATE.format("Describe it.\nAll."), text) == TEMPLATE.format(text)


@pytest.mark.fast
def test_second_prompt_replaces_text_before_the_video() -> None:
    turned = "<|im_start|>user\n{}<|vision_start|><|video_pad|><|vision_end|><|im_end|>\n<|im_start|>assistant\n"
    assert second_prompt(turned.format("Describe it."), "text") == turned.format("text")


@pytest.mark.fast
@pytest.mark.parametrize("prompt", ["Describe it.", TEMPLATE.format("")])
def test_prompt_without_a_place_for_the_caption_is_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match="chat template"):
        second_prompt(prompt, "text")


@pytest.mark.fast
def test_frames_of_every_layout_and_dtype_are_equal() -> None:
    thwc = np.random.default_rng(0).integers(0, 256, (4, 28, 56, 3), dtype=np.uint8)
    tchw = thwc.transpose(0, 3, 1, 2)
    tensor = torch.from_numpy(tchw.copy())
    tensors = [tensor.float(), tensor.bfloat16(), tensor.half().requires_grad_()]
    forms = [thwc, tchw, tchw.astype(np.float32), tchw.astype(np.int64), *tensors]
    for frames in [*map(as_frames, forms), as_frames(tchw.astype(np.float64) / 255, float_maximum=1)]:
        assert frames.dtype == np.uint8
        np.testing.assert_array_equal(frames, thwc)


@pytest.mark.fast
def test_nearly_black_float_video_stays_nearly_black() -> None:
    assert as_frames(np.full((2, 3, 28, 28), 0.6, np.float32)).max() == 1


@pytest.mark.fast
@pytest.mark.parametrize("bad", [np.zeros((4, 28, 28)), np.zeros((4, 28, 28, 4)), np.zeros((0, 28, 28, 3)), "video1"])
def test_array_that_is_not_a_video_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="a video's shape"):
        GivenVideo.parse({"video": bad})


@pytest.mark.fast
def test_negative_values_are_refused() -> None:
    with pytest.raises(ValueError, match="do not normalize"):
        as_frames(np.full((2, 3, 28, 28), -1.0))


class CrashingEngine(FakeEngine):
    """An engine that crashes on the prompt ``poison`` and refuses every second stage."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []

    async def complete(self, request: Request) -> Completion:
        self.requests.append(request)
        if "poison" in request.prompt:
            raise EngineCrashed("scripted")
        if request.stage == 2:
            raise RequestFailed("refused", "no second stage")
        return Completion(f"caption of {request.prompt}", "stop", 1, 0, 1)


@pytest.fixture
def model_on_fake_engine() -> Iterator[QwenVL]:
    """A model on a fake engine that may crash and is not restarted."""
    model = QwenVL("/models", "sample", 16, fp8=False, stage2_prompt_text="Refine: ")
    loop = LoopThread("test")
    supervisor = EngineSupervisor(lambda: start_fake_engine(CrashingEngine()), max_restarts=0)
    loop.run(supervisor.__aenter__())
    model._loop, model._supervisor = loop, supervisor
    yield model
    model.close()


def fake_engine(model: QwenVL) -> CrashingEngine:
    assert model._supervisor is not None
    engine: object = model._supervisor.engine
    assert isinstance(engine, CrashingEngine)
    return engine


def blank(prompt: str, frames: int = 4, size: tuple[int, int] = (28, 56)) -> dict[str, Any]:
    return {"prompt": prompt, "multi_modal_data": {"video": (np.zeros((frames, *size, 3), np.uint8), {"fps": 4.0})}}


@pytest.mark.fast
def test_finished_captions_are_returned_if_the_engine_is_not_restarted(model_on_fake_engine: QwenVL) -> None:
    with pytest.raises(CaptionsIncomplete, match=r"1 of 2 videos.*CAPTION_MAX_ENGINE_RESTARTS") as raised:
        model_on_fake_engine.generate([blank("one"), blank("poison")])
    assert raised.value.captions == ["caption of one", None]


@pytest.mark.fast
def test_refused_video_does_not_affect_others(model_on_fake_engine: QwenVL) -> None:
    no_video: dict[str, Any] = {"prompt": "two", "multi_modal_data": {}}
    with pytest.raises(CaptionsIncomplete, match=r"2 of 4 videos.*Video 1: .*video") as raised:
        model_on_fake_engine.generate([blank("one"), no_video, blank("three", size=(1, 256)), blank("four")])
    assert raised.value.captions == ["caption of one", None, None, "caption of four"]
    assert "256x1" in raised.value.errors[2]


@pytest.mark.fast
def test_failed_second_stage_keeps_the_first_caption(model_on_fake_engine: QwenVL) -> None:
    with pytest.raises(CaptionsIncomplete, match="no second stage") as raised:
        model_on_fake_engine.generate([blank("user_prompt")], generate_stage2_caption=True)
    assert raised.value.captions == [None]
    assert raised.value.stage1 == ["caption of user_prompt"]


@pytest.mark.fast
def test_second_stage_prompt_contains_the_first_caption(model_on_fake_engine: QwenVL) -> None:
    with pytest.raises(CaptionsIncomplete):
        model_on_fake_engine.generate([blank("Say user_prompt.")], generate_stage2_caption=True)
    first, second = fake_engine(model_on_fake_engine).requests
    assert (first.prompt, second.prompt) == ("Say user_prompt.", "Say Refine: caption of Say user_prompt..")


@pytest.mark.fast
@pytest.mark.parametrize(
    ("given", "enlarges", "shown"),
    [
        ((28, 56), False, (28, 56)),
        ((28, 56), True, (84, 168)),
        ((27, 56), False, (84, 168)),
        ((720, 1280), False, (84, 140)),
        ((112, 112), True, (112, 112)),
    ],
)
def test_frames_that_the_model_does_not_take_are_resized(
    model_on_fake_engine: QwenVL, given: tuple[int, int], enlarges: bool, shown: tuple[int, int]
) -> None:
    model_on_fake_engine.model_does_preprocess = enlarges
    model_on_fake_engine.generate([blank("user_prompt", size=given)])
    [request] = fake_engine(model_on_fake_engine).requests
    assert request.frames
    assert request.frames.pixels.shape == (4, *shown, 3)


@pytest.mark.fast
def test_frames_of_a_size_that_the_model_takes_are_unchanged(model_on_fake_engine: QwenVL) -> None:
    video = np.random.default_rng(0).integers(0, 256, (5, 84, 112, 3), dtype=np.uint8)
    model_on_fake_engine.generate([{"prompt": "one", "multi_modal_data": {"video": (video, {"fps": 3.0})}}])
    [request] = fake_engine(model_on_fake_engine).requests
    assert request.frames
    np.testing.assert_array_equal(request.frames.pixels, np.concatenate([video, video[-1:]]))
    assert (request.frames.fps, request.frames.indices) == (3.0, (0, 1, 2, 3, 4, 5))


@pytest.mark.fast
def test_long_video_loses_frames_and_its_frame_rate_is_adjusted(model_on_fake_engine: QwenVL) -> None:
    engine = fake_engine(model_on_fake_engine)
    model_on_fake_engine.model_does_preprocess = True
    model_on_fake_engine.generate([blank("user_prompt", frames=768, size=(120, 160))])
    [request] = engine.requests
    assert request.frames
    frames, height, width, _ = request.frames.pixels.shape
    limits = find_variant("sample").pixels
    assert frames < 768
    assert frames * height * width <= limits.total_pixels
    assert (request.frames.indices[0], request.frames.indices[-1]) == (0, 767)
    assert request.frames.fps == pytest.approx(4.0 * (frames - 1) / 767)


@pytest.mark.fast
def test_room_is_kept_for_the_answers_of_the_requested_stages(model_on_fake_engine: QwenVL) -> None:
    engine = fake_engine(model_on_fake_engine)
    model_on_fake_engine.model_does_preprocess = True
    model_on_fake_engine.max_output_tokens = engine.context // 2 - 20
    model_on_fake_engine.generate([blank("user_prompt", frames=12, size=(120, 160))])
    with pytest.raises(CaptionsIncomplete, match="tokens left for the video"):
        model_on_fake_engine.generate([blank("user_prompt", frames=12, size=(120, 160))], generate_stage2_caption=True)
    assert [len(request.frames.pixels) for request in engine.requests if request.frames] == [12]


@pytest.mark.fast
def test_setup_without_weights_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"Qwen2.5-VL.*call QwenVL.download_weights_on_node\(.*, variant='qwen2.5'\)"
    ):
        QwenVL(str(tmp_path), "qwen2.5", 16).setup()


@pytest.mark.store
def test_weights_are_downloaded_to_the_folder_of_the_reference(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VARIANTS, "small", MODEL)
    QwenVL.download_weights_on_node(str(tmp_path / "node"), "small")
    QwenVL.download_weights_on_node(str(tmp_path / "node"), model_variant="small")
    QwenVL.download_weights_on_node(str(tmp_path / "node"), variant="small")
    assert (tmp_path / "node" / "someone" / "small-vl" / SHARD).read_bytes() == hub.files[SHARD]
    assert hub.sent[SHARD] == len(hub.files[SHARD])
    assert QwenVL(str(tmp_path / "node"), "small", 16).weight_file == str(tmp_path / "node" / "someone" / "small-vl")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QwenVL]:
    """The sample model in a folder as the reference's ``download_weights_on_node`` leaves it."""
    folder = str(tmp_path_factory.mktemp("models"))
    write_snapshot(Path(folder) / SAMPLE.hub_id, Path(find_source(SAMPLE).address), SAMPLE.revision)
    before, after = STAGE2.template.split("{caption}")
    assert not after.startswith(" ")
    model = QwenVL(
        folder, "sample", 16, fp8=False, stage2_prompt_text=before, max_model_len=1984, gpu_memory_utilization=0.6
    )
    model.setup()
    yield model
    model.close()


@pytest.fixture(scope="module")
def clips() -> list[tuple[SampleClip, bytes]]:
    clips = [random_clip(4000 + number, shortest=(120, 240), longest_seconds=3.0) for number in range(6)]
    return [(clip, encode(clip)) for clip in clips]


def inputs(
    clips: list[tuple[SampleClip, bytes]], text: str, *, size: tuple[int, int] = (84, 112)
) -> list[dict[str, Any]]:
    videos = []
    for clip, data in clips:
        frames = decode(data, 0, clip.frames, 4, size)
        video = (frames.pixels.transpose(0, 3, 1, 2), {"fps": frames.fps})
        videos.append({"prompt": TEMPLATE.format(text), "multi_modal_data": {"video": video}})
    return videos


@pytest.mark.engine
def test_captions_are_in_order_and_inputs_are_unchanged(model: QwenVL, clips: list[tuple[SampleClip, bytes]]) -> None:
    assert model.generate([]) == []
    videos = inputs(clips, STAGE1.prompt)
    kept = copy.deepcopy(videos)
    captions = model.generate(videos, batch_size=2)
    assert captions == [clip.scenes[0].stage1 for clip, _ in clips]
    for video, copied in zip(videos, kept, strict=True):
        assert video["prompt"] == copied["prompt"]
        np.testing.assert_array_equal(video["multi_modal_data"]["video"][0], copied["multi_modal_data"]["video"][0])


@pytest.mark.engine
def test_tensors_of_bfloat16_are_captioned(model: QwenVL, clips: list[tuple[SampleClip, bytes]]) -> None:
    videos = inputs(clips, STAGE1.prompt)
    for video in videos:
        pixels, metadata = video["multi_modal_data"]["video"]
        video["multi_modal_data"]["video"] = torch.from_numpy(pixels.copy()).bfloat16(), metadata
    assert model.generate(videos) == [clip.scenes[0].stage1 for clip, _ in clips]


@pytest.mark.engine
def test_weights_of_the_reference_are_used_where_they_are(model: QwenVL) -> None:
    assert model._supervisor
    assert model._supervisor.engine._model_config.model == model.weight_file == f"{model.model_dir}/{SAMPLE.hub_id}"
    assert Path(model.weight_file, MANIFEST).exists()


@pytest.mark.engine
def test_further_arguments_reach_the_engine(model: QwenVL) -> None:
    assert model._supervisor
    config = model._supervisor.engine._vllm_config
    assert (config.model_config.max_model_len, config.cache_config.gpu_memory_utilization) == (1984, 0.6)


@pytest.mark.engine
def test_unknown_argument_is_refused_by_setup(model: QwenVL) -> None:
    unknown = QwenVL(model.model_dir, "sample", 16, fp8=False, max_modle_len=1024)
    with pytest.raises(TypeError, match=r"unexpected keyword argument.*'max_modle_len' \(did you mean 'max_model_len'"):
        unknown.setup()


@pytest.mark.engine
def test_second_stage_changes_the_first_caption(model: QwenVL, clips: list[tuple[SampleClip, bytes]]) -> None:
    captions = model.generate(inputs(clips, STAGE1.prompt), generate_stage2_caption=True)
    assert all(captions)
    assert all(caption != clip.scenes[0].stage1 for caption, (clip, _) in zip(captions, clips, strict=True))


@pytest.mark.engine
def test_frames_of_native_size_are_captioned(model: QwenVL, clips: list[tuple[SampleClip, bytes]]) -> None:
    expected = [clip.scenes[0].stage1 for clip, _ in clips]
    assert model.generate(inputs(clips, STAGE1.prompt, size=(150, 190))) == expected


@pytest.mark.engine
def test_failed_video_keeps_the_captions_of_others(model: QwenVL, clips: list[tuple[SampleClip, bytes]]) -> None:
    videos = inputs(clips[:3], STAGE1.prompt)
    videos[1]["prompt"] = TEMPLATE.format("word " * 4000)
    with pytest.raises(CaptionsIncomplete, match="1 of 3") as raised:
        model.generate(videos)
    assert raised.value.captions == [clips[0][0].scenes[0].stage1, None, clips[2][0].scenes[0].stage1]
