"""Tests of settings in a model's own files, with vLLM's front end: they need no engine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from caption_assets.captioning.engine import CaptionEngine, EngineConfig, EngineError, _build, engine_arguments
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.sampling import SamplingParams
from caption_assets.models.variants import SAMPLE, find_variant
from tests.captioning.families import FAMILIES, THINKING_TEMPLATE, change_json, write_llava, write_qwen2
from tests.captioning.front_end import start_front_end
from tests.conftest import RunAsync

pytestmark = pytest.mark.engine

OWN = SamplingParams(None, None, None, 32)


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models: the processor of the second resizes frames."""
    folder = tmp_path_factory.mktemp("families")
    for family in ("qwen2.5-vl", "llava-onevision"):
        FAMILIES[family](folder / family, 2048)
    return folder


@pytest.fixture
def folder(families: Path, tmp_path: Path) -> Path:
    """A copy of the first model, to be changed."""
    return shutil.copytree(families / "qwen2.5-vl", tmp_path / "model")


def recipe_of(folder: Path, **changes: Any) -> Recipe:
    return replace(Recipe(find_variant(str(folder), "v1"), generation=OWN), **changes)


def start(run_async: RunAsync[Any], folder: Path, **changes: Any) -> CaptionEngine:
    return run_async(start_front_end(folder, recipe_of(folder, **changes), **SAMPLE.engine))  # type: ignore[no-any-return]


def test_unset_sampling_is_that_of_the_model_files(run_async: RunAsync[Any], folder: Path) -> None:
    change_json(folder / "generation_config.json", temperature=0.7, top_p=0.8, top_k=20, do_sample=True)
    front_end = start(run_async, folder)
    assert front_end.resolve(OWN) == SamplingParams(0.7, 0.8, 1.05, 32)
    sampling = front_end._sampling(OWN)
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.7, 0.8, 20)


def test_set_sampling_overrides_the_model_files(run_async: RunAsync[Any], folder: Path) -> None:
    change_json(folder / "generation_config.json", temperature=0.7, top_k=20, do_sample=True)
    given = SamplingParams(max_output_tokens=32)
    sampling = start(run_async, folder, generation=given)._sampling(given)
    assert (sampling.temperature, sampling.top_k) == (0.1, 0)


def test_end_of_turn_is_a_stop_token_where_the_model_files_do_not_name_it(
    run_async: RunAsync[Any], folder: Path
) -> None:
    change_json(folder / "tokenizer_config.json", eos_token="<|endoftext|>")
    change_json(folder / "generation_config.json", eos_token_id=None)
    front_end = start(run_async, folder)
    [stop] = front_end._sampling(OWN).stop_token_ids
    assert front_end._tokenizer.decode([stop]) == "<|im_end|>"


def test_stop_tokens_of_the_model_files_are_not_repeated(run_async: RunAsync[Any], folder: Path) -> None:
    assert not start(run_async, folder)._sampling(OWN).stop_token_ids


def test_reasoning_is_disabled_where_the_template_allows_it(run_async: RunAsync[Any], folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(THINKING_TEMPLATE)
    assert start(run_async, folder).render("Say.").endswith("<think>\n\n</think>\n\n")
    thinking = start(run_async, folder, chat_template_kwargs={"enable_thinking": True})
    assert thinking.render("Say.").endswith("<think>\n")


@pytest.mark.parametrize("name", ["enable_thinkin", "add_generation_prompt", "chat_template"])
def test_argument_unused_by_the_template_is_refused(run_async: RunAsync[Any], folder: Path, name: str) -> None:
    with pytest.raises(EngineError, match=f"CAPTION_CHAT_TEMPLATE_KWARGS contains {name}, which"):
        start(run_async, folder, chat_template_kwargs={name: True})


def test_unknown_reasoning_parser_is_refused_and_known_ones_are_named(run_async: RunAsync[Any], folder: Path) -> None:
    with pytest.raises(EngineError, match=r"CAPTION_REASONING_PARSER is 'qwen': choose one of .*qwen3"):
        start(run_async, folder, reasoning_parser="qwen")


STRING_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
DROPS_VIDEO = """\
{% for m in messages %}{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}\
{% endfor %}"""
DROPS_TEXT = """\
{% for m in messages %}{% for part in m.content %}{% if part.type == 'video' %}<|vision_start|><|video_pad|>\
<|vision_end|>{% endif %}{% endfor %}{% endfor %}"""
RAISES = "{{ raise_exception('no videos here') }}"


def test_template_for_text_receives_the_placeholder_of_the_video(run_async: RunAsync[Any], folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(STRING_TEMPLATE)
    assert "<|video_pad|><|vision_end|>\nWhat is it?" in start(run_async, folder).render("What is it?")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (DROPS_VIDEO, "its chat template has no placeholder for one: choose"),
        (DROPS_TEXT, "drops the instruction"),
        (RAISES, "no videos here"),
    ],
)
def test_template_without_video_or_instruction_is_refused_at_start(
    run_async: RunAsync[Any], folder: Path, template: str, reason: str
) -> None:
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(EngineError, match=f"local/model does not accept videos: .*{reason}"):
        start(run_async, folder)


@pytest.mark.parametrize("is_listed", [False, True])
def test_default_template_of_several_is_used(run_async: RunAsync[Any], folder: Path, is_listed: bool) -> None:
    """transformers saves the others in a folder; its older releases save all in a list."""
    template = folder / "chat_template.jinja"
    if is_listed:
        named = [{"name": "tool_use", "template": "-"}, {"name": "default", "template": template.read_text()}]
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": named}))
        template.unlink()
    else:
        others = folder / "additional_chat_templates"
        others.mkdir()
        (others / "tool_use.jinja").write_text("{{ messages }}")
    prompt = start(run_async, folder).render("Say.")
    assert prompt.startswith("<|im_start|>")
    assert "<|video_pad|><|vision_end|>Say.<|im_end|>" in prompt


def test_model_without_a_template_is_refused_at_start(run_async: RunAsync[Any], folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(EngineError, match="does not accept videos: the model has no default chat template"):
        start(run_async, folder)


def test_context_without_room_for_the_smallest_video_is_refused_at_start(
    run_async: RunAsync[Any], folder: Path
) -> None:
    with pytest.raises(EngineError, match=r"the context of 2048 tokens has no room .*lower CAPTION_MAX_OUTPUT_TOKENS"):
        start(run_async, folder, generation=SamplingParams(max_output_tokens=2000))


def test_tokens_of_pruned_videos_are_measured(run_async: RunAsync[Any], folder: Path) -> None:
    pruned = recipe_of(folder)
    front_end = run_async(start_front_end(folder, pruned, **SAMPLE.engine, video_pruning_rate=0.5))
    assert not front_end._videos.is_exact


def test_tokenizer_adds_no_token_to_the_rendered_prompt(run_async: RunAsync[Any], folder: Path) -> None:
    """The tokenizer puts a special token before each text by default."""
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    token = "<|endoftext|>"
    number = next(added["id"] for added in tokenizer["added_tokens"] if added["content"] == token)
    single = [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {token: {"id": token, "ids": [number], "tokens": [token]}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single,
        "special_tokens": special,
    }
    file.write_text(json.dumps(tokenizer))
    assert start(run_async, folder)._videos.is_exact


@pytest.mark.parametrize("write", [write_llava, write_qwen2])
def test_model_without_video_is_refused_before_its_weights_are_loaded(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    write(tmp_path)

    def check() -> None:
        """Called a second time if the configuration is accepted."""
        steps.append("step")
        assert len(steps) == 1

    steps: list[str] = []
    arguments = engine_arguments(tmp_path, recipe_of(tmp_path), EngineConfig(engine_args=SAMPLE.engine))
    with pytest.raises(EngineError, match=r"does not take videos: set CAPTION_MODEL to a video model"):
        _build(arguments, recipe_of(tmp_path), None, check)
