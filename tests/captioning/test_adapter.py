from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import pytest

from caption_assets.captioning.adapter import RANKS, Adapter
from caption_assets.captioning.engine import EngineConfig, EngineError, engine_arguments, start_engine
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.sampling import DETERMINISTIC
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.captioning.window_job import WindowJob
from caption_assets.models.checkpoint import Lora
from caption_assets.models.variants import SAMPLE
from caption_assets.models.weights import WeightsError
from caption_assets.store.tables import ManifestRow, Status
from tests.captioning.window_jobs import video_jobs
from tests.conftest import caption_all
from tests.models.adapters import LANGUAGE, VISION, Modules, adapter_files, write_adapter
from tests.stages import STAGE1, STAGE2, STAGES
from tests.videos import moving_video

MODEL = Path(str(files("caption_assets.sample") / "model"))
LORA = Lora("local/mine", "v1", path="/mine")
RECIPE = Recipe(generation=DETERMINISTIC, lora=LORA)
WINDOW = ManifestRow("a.mp4", 0, "id", "tag", 10, Status.OK, start_frame=0, end_frame=64)


def read_adapter(folder: Path, modules: Modules = LANGUAGE, **options: Any) -> Adapter:
    return Adapter.read(LORA, write_adapter(folder, adapter_files(modules, **options)), SAMPLE, MODEL)


@pytest.mark.fast
def test_adapter_of_the_model_has_no_warnings(tmp_path: Path) -> None:
    adapter = read_adapter(tmp_path)
    assert (adapter.warnings, adapter.rank, adapter.has_vision) == ((), 4, False)


@pytest.mark.fast
def test_adapter_of_another_base_model_has_a_warning(tmp_path: Path) -> None:
    [warning] = read_adapter(tmp_path, base_model_name_or_path="Qwen/Qwen2.5-VL-7B-Instruct").warnings
    assert "applied to caption-assets/sample-qwen2.5-vl, but it was trained on Qwen/Qwen2.5-VL-7B-Instruct" in warning


@pytest.mark.fast
def test_modules_that_vllm_ignores_have_a_warning(tmp_path: Path) -> None:
    [warning] = read_adapter(
        tmp_path, {**LANGUAGE, "model.language_model.layers.9.self_attn.q_proj": (192, 192)}
    ).warnings
    assert "1 modules of the adapter local/mine" in warning
    assert "vLLM ignores them" in warning


@pytest.mark.fast
def test_adapter_of_a_larger_model_is_refused_and_its_base_is_named(tmp_path: Path) -> None:
    sizes = dict.fromkeys(LANGUAGE, (3584, 3584))
    with pytest.raises(
        WeightsError,
        match=r"local/mine does not fit the model caption-assets/sample.*q_proj is 3584, but the model's is "
        r"192; it was trained on Qwen/Qwen2\.5-VL-7B-Instruct: set CAPTION_MODEL to that model",
    ):
        read_adapter(tmp_path, sizes, base_model_name_or_path="Qwen/Qwen2.5-VL-7B-Instruct")


@pytest.mark.fast
def test_adapter_changes_the_fingerprint() -> None:
    recipes = [
        Recipe(),
        Recipe(lora=Lora("a/b", "1")),
        Recipe(lora=Lora("a/c", "1")),
        Recipe(lora=Lora("a/b", "2")),
        Recipe(lora=LORA, lora_weights="11"),
        Recipe(lora=LORA, lora_weights="22"),
    ]
    for stage in STAGES:
        assert len({recipe.fingerprint(stage, WINDOW) for recipe in recipes}) == len(recipes)
        assert len({recipe.version(stage) for recipe in recipes}) == len(recipes) - 1  # the last two have the same name


@pytest.mark.fast
def test_identity_without_an_adapter_has_no_adapter_key() -> None:
    assert "lora" not in Recipe().identity(STAGE1)


@pytest.mark.fast
@pytest.mark.parametrize("name", ["enable_lora", "max_lora_rank", "max_loras", "default_mm_loras"])
def test_lora_arguments_are_refused_in_the_engine_arguments(name: str) -> None:
    with pytest.raises(EngineError, match=f"CAPTION_ENGINE_ARGS contains {name}.*CAPTION_LORA"):
        engine_arguments(MODEL, Recipe(), EngineConfig(engine_args={name: 1}))


@pytest.mark.fast
@pytest.mark.parametrize(("rank", "largest"), [(4, 8), (8, 8), (9, 16), (65, 128), (512, 512)])
def test_rank_is_rounded_up_to_one_of_vllms(tmp_path: Path, rank: int, largest: int) -> None:
    arguments = engine_arguments(MODEL, RECIPE, EngineConfig(), read_adapter(tmp_path, rank=rank))
    assert (arguments["enable_lora"], arguments["max_lora_rank"]) == (True, largest)


@pytest.mark.fast
def test_rank_above_the_maximum_of_vllm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="has rank 513, but vLLM supports at most 512: merge it into its model"):
        read_adapter(tmp_path, rank=513)


@pytest.mark.engine
def test_ranks_are_those_of_the_installed_vllm() -> None:
    from vllm.config.lora import MaxLoRARanks

    assert get_args(MaxLoRARanks) == RANKS


@pytest.mark.engine
@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"use_dora": True}, "vLLM does not yet support DoRA"),
        ({"init_lora_weights": "pissa"}, "does not support init_lora_weights='pissa'"),
        ({"modules_to_save": ["lm_head"]}, "Unsupported modules_to_save"),
        ({"bias": "all"}, "Adapter bias is not supported"),
    ],
)
def test_unsupported_adapter_is_refused_before_the_model_is_loaded(
    tmp_path: Path, config: dict[str, Any], reason: str
) -> None:
    adapter = read_adapter(tmp_path, **config)
    with pytest.raises(
        EngineError, match=f"cannot apply the adapter local/mine: .*{reason}.*: merge it .*set CAPTION_MODEL"
    ):
        asyncio.run(start_and_stop(adapter))


@pytest.mark.engine
@pytest.mark.parametrize(
    ("model_type", "architecture", "has_tower"),
    [
        ("internvl", "InternVLForConditionalGeneration", False),
        ("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", True),
        ("qwen3_vl", "Qwen3VLForConditionalGeneration", True),
        ("glm4v", "Glm4vForConditionalGeneration", True),
    ],
)
def test_vision_adapter_is_refused_where_vllm_does_not_apply_it(
    tmp_path: Path, model_type: str, architecture: str, has_tower: bool
) -> None:
    from vllm.config import LoRAConfig, ModelConfig

    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "architectures": [architecture]}))
    model = ModelConfig(model=str(tmp_path), tokenizer=str(tmp_path), skip_tokenizer_init=True)
    language, vision = read_adapter(tmp_path / "language"), read_adapter(tmp_path / "vision", VISION)
    language.check(model, LoRAConfig())
    lora = LoRAConfig(enable_tower_connector_lora=True)
    if has_tower:
        vision.check(model, lora)
        return
    with pytest.raises(
        WeightsError, match=f"but vLLM does not support LoRA for that of {architecture}: merge it into its"
    ):
        vision.check(model, lora)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (b'{"model_type": "molmo2", "auto_map": {}}', "needs code from its own repository"),
        (b"", "is not valid JSON"),
        (None, r"cannot read .*config\.json"),
    ],
)
def test_unsupported_model_folder_is_refused_before_vllm_is_imported(
    tmp_path: Path, config: bytes | None, reason: str
) -> None:
    if config is not None:
        (tmp_path / "config.json").write_bytes(config)
    with pytest.raises(EngineError, match=reason):
        asyncio.run(start_engine(tmp_path, Recipe(), EngineConfig()).__aenter__())


@pytest.mark.fast
def test_engine_without_the_adapter_of_the_recipe_is_refused() -> None:
    with pytest.raises(ValueError, match="the recipe's adapter is Lora"):
        asyncio.run(start_and_stop(None))


@pytest.mark.engine
@pytest.mark.parametrize(("modules", "scale"), [(LANGUAGE, 0.2), (VISION, 0.5)], ids=["language", "vision"])
def test_adapter_changes_captions(
    tmp_path: Path, supervisor: EngineSupervisor, event_loop_runner: asyncio.Runner, modules: Modules, scale: float
) -> None:
    jobs = video_jobs(moving_video(48))
    base = event_loop_runner.run(caption_all(supervisor, replace(RECIPE, lora=None), jobs))
    adapted = asyncio.run(caption_with_adapter(read_adapter(tmp_path, modules, scale=scale), jobs))
    assert [row.row(STAGE1).caption for row in adapted] != [row.row(STAGE1).caption for row in base]
    for result in adapted:
        assert result.row(STAGE1).caption
        assert (result.row(STAGE1).lora, result.row(STAGE1).lora_revision) == ("local/mine", "v1")
        assert result.row(STAGE2).cached_tokens, "stage 2 does not reuse the adapted tokens of the video"


async def caption_with_adapter(adapter: Adapter, jobs: Sequence[WindowJob]) -> list[WindowJob]:
    async with EngineSupervisor(lambda: start_engine(MODEL, RECIPE, EngineConfig(), adapter)) as supervisor:
        return await caption_all(supervisor, RECIPE, jobs)


async def start_and_stop(adapter: Adapter | None) -> None:
    async with start_engine(MODEL, RECIPE, EngineConfig(), adapter):
        pass
