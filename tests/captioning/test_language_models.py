"""Tests of stages that a language model answers: the recipe, and runs on a real engine."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from caption_assets.captioning.caption_run import CaptionRun
from caption_assets.captioning.engine import CaptionEngine, EngineConfig, EngineError, engine_arguments
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.recipe_file import RecipeError, parse_recipe
from caption_assets.models.checkpoint import Lora
from caption_assets.models.variants import QWEN25, find_language_model
from caption_assets.store.root import Root
from tests.captioning.families import FAMILIES
from tests.captioning.front_end import start_front_end
from tests.captioning.language_model import write_language_model
from tests.captioning.test_recipe import WINDOW
from tests.conftest import RunAsync

HUB_ID, REVISION = "Qwen/Qwen2.5-14B-Instruct", "cf98f3b3bbb457ad9e2bb7baf9a0125b6b88caa8"
VIDEO = """
stages:
  - name: caption
    prompt: Describe the video.
"""
ENHANCED = f"""
  - name: enhanced
    prompt: "Make this longer: {{caption}}"
    video: false
    model: {HUB_ID}
    revision: {REVISION}
"""
TEXTS = {"caption": "A red ball."}


def recipe_of(*stages: str, **fields: object) -> Recipe:
    """A recipe for Qwen2.5-VL with a video stage and further stages."""
    return Recipe(QWEN25, graph=parse_recipe("mine", "".join((VIDEO, *stages)), "mine.yaml"), **fields)  # type: ignore[arg-type]


@pytest.mark.fast
def test_language_model_has_a_step_of_its_own() -> None:
    video, language = recipe_of(ENHANCED).steps
    assert (video.variant, [stage.name for stage in video.own_stages]) == (QWEN25, ["caption"])
    assert language.variant == find_language_model(HUB_ID, REVISION)
    assert [stage.name for stage in language.own_stages] == ["enhanced"]


@pytest.mark.fast
def test_stages_of_one_language_model_share_a_step() -> None:
    short = ENHANCED.replace("enhanced", "short").replace("{caption}", "{enhanced}")
    other = ENHANCED.replace("enhanced", "other").replace("14B", "7B")
    steps = recipe_of(other, ENHANCED, short).steps
    assert [[stage.name for stage in step.own_stages] for step in steps] == [
        ["caption"],
        ["other"],
        ["enhanced", "short"],
    ]


@pytest.mark.fast
def test_recipe_without_language_models_has_one_step() -> None:
    recipe = Recipe()
    assert recipe.steps == (recipe,)
    assert recipe.own_stages == recipe.stages


@pytest.mark.fast
@pytest.mark.parametrize(
    ("stages", "line", "problem"),
    [
        (ENHANCED.replace("video: false", "video: true"), 9, "enhanced shows the video, which its own model"),
        (ENHANCED.replace("    revision", "    # revision"), 9, "needs revision (it is None): the commit on the Hub"),
        (ENHANCED.replace(f"    model: {HUB_ID}\n", ""), 9, "`revision` belongs to `model`"),
        (ENHANCED.replace(HUB_ID, "gpt"), 9, "unknown model 'gpt': choose one of"),
        (ENHANCED.replace(HUB_ID, "qwen3"), 9, "unset revision, or set model to Qwen/Qwen3-VL-8B-Instruct"),
        (ENHANCED.replace(HUB_ID, "s3://key:word@host/model"), 9, "contains credentials"),
        (
            ENHANCED + '  - name: again\n    prompt: "Compare with {enhanced}"\n',
            12,
            "again needs enhanced, and the model of enhanced needs that of again: a model answers all its stages in "
            "one step, so remove the slot {enhanced}",
        ),
    ],
)
def test_invalid_language_model_is_an_error_with_its_line(stages: str, line: int, problem: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(f"mine.yaml:{line}: ") + ".*" + re.escape(problem)):
        recipe_of(stages)


@pytest.mark.fast
def test_language_models_that_need_each_other_are_an_error() -> None:
    other = ENHANCED.replace("enhanced", "other").replace("14B", "7B").replace("{caption}", "{enhanced}")
    third = ENHANCED.replace("enhanced", "third").replace("{caption}", "{other}")
    with pytest.raises(RecipeError, match=r"mine\.yaml:\d+: third needs other, and the model of other"):
        recipe_of(ENHANCED, other, third)


@pytest.mark.fast
def test_version_of_a_stage_depends_on_its_own_model() -> None:
    recipe, changed = recipe_of(ENHANCED), recipe_of(ENHANCED.replace(REVISION, "another"))
    caption, enhanced = recipe.stages
    assert recipe.version(caption) == changed.version(changed.stages[0]) == recipe_of().version(caption)
    assert recipe.version(enhanced) != changed.version(changed.stages[1])
    assert recipe.identity(enhanced)["model"] == HUB_ID
    assert recipe.version(enhanced) == recipe.steps[1].version(enhanced)


@pytest.mark.fast
@pytest.mark.parametrize(
    "changed",
    [
        {"variant": replace(QWEN25, revision="other")},
        {"fp8": True},
        {"lora": Lora("someone/adapter", "v1")},
        {"engine": {"attention_backend": "TRITON_ATTN"}},
        {"chat_template_kwargs": {"enable_thinking": True}},
        {"reasoning_parser": "qwen3"},
        {"weights": "0123"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_settings_of_the_video_model_do_not_affect_a_language_model(changed: dict[str, object]) -> None:
    recipe = recipe_of(ENHANCED)
    other = replace(recipe, **changed)  # type: ignore[arg-type]
    caption, enhanced = recipe.stages
    assert recipe.identity(enhanced) == other.identity(enhanced)
    assert recipe.steps[1].fingerprint(enhanced, WINDOW, TEXTS) == other.steps[1].fingerprint(enhanced, WINDOW, TEXTS)
    assert recipe.fingerprint(caption, WINDOW) != other.fingerprint(caption, WINDOW)


@pytest.mark.fast
def test_fingerprint_contains_the_weights_of_a_language_model_in_a_folder() -> None:
    language = recipe_of(ENHANCED).steps[1]
    [enhanced] = language.own_stages
    changed = replace(language, weights="0123")
    assert language.fingerprint(enhanced, WINDOW, TEXTS) != changed.fingerprint(enhanced, WINDOW, TEXTS)


@pytest.mark.fast
def test_stage_of_another_model_is_an_error(tmp_path: Path) -> None:
    recipe, root = recipe_of(ENHANCED), Root.open(str(tmp_path))
    assert [stage.name for stage in CaptionRun(root, root, recipe).stages] == ["caption"]
    with pytest.raises(ValueError, match=r"Qwen2\.5-VL-7B-Instruct does not answer enhanced"):
        CaptionRun(root, root, recipe, stages=recipe.stages)
    with pytest.raises(ValueError, match="enhanced is not answered by Qwen/Qwen2"):
        recipe.fingerprint(recipe.stages[1], WINDOW, TEXTS)


@pytest.mark.fast
def test_engine_of_a_language_model_loads_no_vision_encoder() -> None:
    language = recipe_of(ENHANCED).steps[1]
    config = EngineConfig(engine_args={"max_num_seqs": 8}).of(language.variant)
    arguments = engine_arguments(Path("/m"), language, config)
    assert arguments["language_model_only"]
    assert arguments.keys().isdisjoint({"limit_mm_per_prompt", "max_num_seqs", "quantization"})


def language_recipe(folder: Path) -> Recipe:
    """The recipe of a language model in a folder."""
    stage = ENHANCED.replace(HUB_ID, str(folder)).replace(REVISION, "v1") + "    max_output_tokens: 32\n"
    return recipe_of(stage).steps[1]


@pytest.mark.engine
@pytest.mark.parametrize(
    "body",
    ["{{ message.content }}", "{% for part in message.content %}{{ part.text }}{% endfor %}"],
    ids=["strings", "parts"],
)
def test_chat_template_of_a_language_model_may_take_strings_or_parts(
    tmp_path: Path, run_async: RunAsync[CaptionEngine], body: str
) -> None:
    write_language_model(tmp_path)
    template = "{% for message in messages %}<|im_start|>{{ message.role }}: " + body + "<|im_end|>{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(template)
    engine = run_async(start_front_end(tmp_path, language_recipe(tmp_path)))
    assert engine.render("Hello <|im_end|>", video=False).startswith("<|im_start|>user: Hello <")
    assert engine.render("Hello", video=False) == "<|im_start|>user: Hello<|im_end|>"


@pytest.mark.engine
def test_language_model_without_chat_template_is_an_error(tmp_path: Path, run_async: RunAsync[CaptionEngine]) -> None:
    write_language_model(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(EngineError, match=r"local/\S+ does not accept instructions: the model has no default chat"):
        run_async(start_front_end(tmp_path, language_recipe(tmp_path)))


@pytest.mark.engine
def test_prompt_without_room_in_the_context_is_an_error(tmp_path: Path, run_async: RunAsync[CaptionEngine]) -> None:
    write_language_model(tmp_path, context=40)
    with pytest.raises(EngineError, match=r"no room for the prompt of enhanced \(\d+\) and the answer \(32\)"):
        run_async(start_front_end(tmp_path, language_recipe(tmp_path)))


@pytest.mark.engine
def test_video_model_may_answer_stages_without_video(tmp_path: Path, run_async: RunAsync[CaptionEngine]) -> None:
    FAMILIES["qwen2.5-vl"](tmp_path, 512)
    engine = run_async(start_front_end(tmp_path, language_recipe(tmp_path)))
    assert "video" not in engine.render("Hello", video=False)
    assert engine.capacity.windows > 0
