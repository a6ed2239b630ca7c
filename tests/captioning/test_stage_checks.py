"""Tests of the checks of a recipe's stages when an engine starts, with vLLM's front end: they need no engine."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from caption_assets.captioning.engine import CaptionEngine, EngineConfig, EngineError, start_engine
from caption_assets.captioning.output import ChoiceOutput, JsonOutput, Output
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.request import Request
from caption_assets.captioning.sampling import SamplingParams
from caption_assets.captioning.stages import Stage, StageGraph
from tests.captioning.families import THINKING_TEMPLATE
from tests.captioning.front_end import start_front_end
from tests.conftest import RunAsync

pytestmark = pytest.mark.engine

CAPTIONS = Stage("captions_of_windows", "Describe the video.")
YES_NO = ChoiceOutput(("yes", "no"))
NAMES = JsonOutput({"type": "object", "properties": {"name": {"type": "string"}}})


def recipe_of(*stages: Stage, **changes: Any) -> Recipe:
    return replace(Recipe(graph=StageGraph("test", (CAPTIONS, *stages))), **changes)


@pytest.fixture
def start(run_async: RunAsync[Any], model_folder: Path) -> Any:
    """Starts vLLM's front end with further stages."""

    def front_end(*stages: Stage, folder: Path = model_folder, **changes: Any) -> CaptionEngine:
        return run_async(start_front_end(folder, recipe_of(*stages, **changes)))  # type: ignore[no-any-return]

    return front_end


def test_choice_of_several_tokens_is_refused_with_its_tokens(start: Any) -> None:
    message = (
        r"labels \(mine\.yaml:7\) of the recipe: the choice 'yes and no' is 3 tokens of this model "
        r"\('yes' ' and' ' no'\), but must be one: use a shorter or more common word"
    )
    with pytest.raises(EngineError, match=message):
        start(Stage("labels", "Is it?", ChoiceOutput(("yes", "yes and no")), place="mine.yaml:7"))


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, "uniqueItems"),
        ({"type": "object", "properties": {"name": {"type": "string", "pattern": "("}}}, "regex parse error"),
    ],
)
def test_json_schema_that_vllm_refuses_is_refused_with_its_reason(
    start: Any, schema: dict[str, object], reason: str
) -> None:
    message = f"fields asks for JSON that vLLM does not support .*{reason}.*: change the output of this stage"
    with pytest.raises(EngineError, match=message):
        start(Stage("fields", "Which?", JsonOutput(schema)))


@pytest.mark.parametrize(("output", "label"), [(YES_NO, "a choice"), (NAMES, "JSON")])
def test_model_that_reasons_first_is_refused_for_choices_and_json(
    start: Any, model_folder: Path, tmp_path: Path, output: Output, label: str
) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "model")
    (folder / "chat_template.jinja").write_text(THINKING_TEMPLATE)
    own = {"folder": folder, "variant": replace(Recipe().variant, path=str(folder))}
    stage = Stage("labels", "Is it?", output)
    start(stage, **own)
    start(**own, chat_template_kwargs={"enable_thinking": True})
    with pytest.raises(EngineError, match=f"labels asks for {label}, but .* begins each answer with reasoning: switch"):
        start(stage, **own, chat_template_kwargs={"enable_thinking": True})


def test_stage_without_room_for_its_answer_is_refused_by_name(start: Any) -> None:
    long = Stage("long", "Say everything.", sampling={"max_output_tokens": 2030})
    message = r"the context of 2048 tokens has no room for the prompt of long .*: lower max_output_tokens of long"
    with pytest.raises(EngineError, match=message):
        start(long)


def test_output_limit_beyond_the_context_is_refused_before_an_engine_is_built(model_folder: Path) -> None:
    long = Stage("long", "Say everything.", sampling={"max_output_tokens": 4096})

    async def run() -> None:
        async with start_engine(model_folder, recipe_of(long), EngineConfig()):
            raise AssertionError("the engine started")

    with pytest.raises(EngineError, match="max_output_tokens of long is 4096, but the model's context has 2048 tokens"):
        asyncio.run(run())


def test_request_without_video_has_neither_placeholder_nor_video(start: Any, run_async: RunAsync[Any]) -> None:
    engine = start()
    prompt = engine.render("Shorten this.", video=False)
    assert "<|video_pad|>" in engine.render("Shorten this.")
    assert "vision" not in prompt
    assert "video" not in prompt
    prepared = run_async(engine._prepare(Request("", None, prompt, SamplingParams(), stage=2), with_pixels=True))
    assert not {name for name in prepared if name.startswith(("mm_", "multi_modal"))}
    assert len(prepared["prompt_token_ids"]) == engine.text_tokens(prompt, video=False)


def test_later_stages_have_priority(start: Any, run_async: RunAsync[Any]) -> None:
    """VLLM schedules the requests of the lowest value first."""
    priorities: list[int] = []

    async def generate(*args: object, priority: int, **options: object) -> AsyncIterator[Any]:
        priorities.append(priority)
        answer = SimpleNamespace(text="a red circle", finish_reason="stop", token_ids=[1, 2, 3])
        yield SimpleNamespace(outputs=[answer], prompt_token_ids=[0], num_cached_tokens=0)

    engine = start()
    engine._llm.generate = generate
    for stage in (1, 2, 4):
        request = Request("", None, engine.render("Shorten this.", video=False), SamplingParams(), stage)
        assert run_async(engine.complete(request)).text == "a red circle"
    assert priorities == sorted(priorities, reverse=True)
    assert len(set(priorities)) == 3


def test_whitespace_in_json_is_limited_where_xgrammar_supports_the_schema(start: Any) -> None:
    engine = start()
    for schema, is_limited in ((NAMES.schema, True), ({"type": "number", "multipleOf": 2}, False)):
        constraint = engine._sampling(SamplingParams(), JsonOutput(schema)).structured_outputs
        assert (constraint.json is None) == is_limited
        assert ("{0, 16}" in (constraint.grammar or "")) == is_limited
        start(Stage("fields", "Which?", JsonOutput(schema)))
