"""A recipe for people: its stages, its prompts as the model gets them, and the checks that need no engine."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from caption_assets.captioning.choices import SplitChoice
from caption_assets.captioning.output import ChoiceOutput, JsonOutput, TextOutput
from caption_assets.captioning.prompt_renderer import PromptRenderer, check_json_schema
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.recipe_file import RecipeError
from caption_assets.captioning.stages import Stage
from caption_assets.models.cache import CacheConfig, find_local

NO_VLLM = "vLLM is not installed here"


def show_recipe(recipe: Recipe, cache: CacheConfig) -> None:
    """Print a recipe: what each stage needs, and the prompts as rendered by the model's chat template.

    Raises:
        TemplateError: if the model's chat template cannot render a prompt.
    """
    graph = recipe.graph
    print(f"{graph.name}: {graph.description}" if graph.description else graph.name)
    print()
    for stage in recipe.stages:
        print(f"  {' + '.join(_inputs(stage))} ▶ {stage.name}")
    print()
    replaced = f"replaces that of {graph.clip_prompt}" if graph.clip_prompt else "is ignored: no stage takes it"
    print(f"A clip's own prompt {replaced}.")
    renderers = _renderers(recipe, cache)
    for stage in recipe.stages:
        renderer = renderers[stage.name]
        print(f"\n── {stage.name} {'─' * (100 - len(stage.name))}")
        print("\n".join(_facts(recipe.of(stage), stage, renderer)))
        print()
        print(stage.prompt if isinstance(renderer, str) else renderer.render(stage))


def check_recipe(recipe: Recipe, cache: CacheConfig) -> None:
    """Check what a recipe needs of vLLM and of the model, and print what was checked.

    Raises:
        RecipeError: if vLLM does not support a JSON Schema, or a choice is not one token of the model.
        TemplateError: if the model's chat template cannot render a prompt.
    """
    names = [stage.name for stage in recipe.stages]
    print(f"{recipe.graph.name}: {len(names)} stage{'s' if len(names) > 1 else ''} ({', '.join(names)})")
    for is_checked, what in recipe_checks(recipe, cache):
        print(f"{'ok' if is_checked else 'skipped':9}{what}")


def recipe_checks(recipe: Recipe, cache: CacheConfig) -> Iterator[tuple[bool, str]]:
    """Check what a recipe needs of vLLM and of the model.

    Yields:
        Whether it could be checked, and what was checked, or what was not and why.

    Raises:
        RecipeError: if vLLM does not support a JSON Schema, or a choice is not one token of the model.
        TemplateError: if the model's chat template cannot render a prompt.
    """
    yield True, "file, stages and slots"
    schemas = [stage for stage in recipe.stages if isinstance(stage.output, JsonOutput)]
    if schemas and find_spec("vllm") is None:
        yield False, f"JSON Schemas: {NO_VLLM}"
    for stage in schemas if find_spec("vllm") else ():
        _check_schema(stage)
        yield True, f"JSON Schema of {stage.name}: vLLM's structured outputs support it"
    renderers = _renderers(recipe, cache)
    for stage in recipe.stages:
        renderer = renderers[stage.name]
        if isinstance(renderer, str):
            yield False, f"prompt of {stage.name}: {renderer}"
            continue
        yield True, f"prompt of {stage.name}: {renderer.tokens(stage)} tokens of {recipe.of(stage).variant.hub_id}"
        if isinstance(stage.output, ChoiceOutput):
            _check_choices(stage, renderer)
            yield True, f"choices of {stage.name}: one token each"


def _renderers(recipe: Recipe, cache: CacheConfig) -> dict[str, PromptRenderer | str]:
    """For each stage the renderer of its model, or the reason why there is none."""
    found: dict[str, PromptRenderer | str] = {}
    for step in recipe.steps:
        found |= dict.fromkeys((stage.name for stage in step.own_stages), _renderer(step, cache))
    return found


def _renderer(recipe: Recipe, cache: CacheConfig) -> PromptRenderer | str:
    if find_spec("vllm") is None:
        return NO_VLLM
    variant = recipe.variant
    folder = find_local(variant, cache.folder)
    if folder is None:
        return f"the files of {variant.hub_id} are not in {cache.folder} (CAPTION_CACHE), where a first run puts them"
    return PromptRenderer(folder, recipe.chat_template_kwargs, video=variant.video)


def _check_schema(stage: Stage) -> None:
    assert isinstance(stage.output, JsonOutput)
    try:
        check_json_schema(stage.output.schema)
    except ValueError as error:
        raise RecipeError(
            f"{stage.place}: vLLM's structured outputs do not support the JSON Schema of {stage.name} ({error}): "
            "remove or replace the keyword"
        ) from error


def _check_choices(stage: Stage, renderer: PromptRenderer) -> None:
    assert isinstance(stage.output, ChoiceOutput)
    try:
        renderer.choices.tokens(stage.output)
    except SplitChoice as error:
        raise RecipeError(f"{stage.place}: {stage.name}: {error}") from error


def _facts(recipe: Recipe, stage: Stage, renderer: PromptRenderer | str) -> Iterator[str]:
    """Lines about a stage's output, sampling and tokens."""
    params = recipe.params(stage)
    match stage.output:
        case TextOutput():
            yield f"output    text, up to {params.max_output_tokens} tokens"
        case JsonOutput():
            yield f"output    JSON, up to {params.max_output_tokens} tokens"
            yield f"fields    {stage.columns.schema.field('fields').type}"
        case ChoiceOutput():
            score = f"; score: the probability of {stage.output.score}" if stage.output.score else ""
            yield f"output    one of {', '.join(stage.output.choices)}{score}"
    if not isinstance(stage.output, ChoiceOutput):
        yield f"sampling  temperature {_number(params.temperature)}, top_p {_number(params.top_p)}"
    if isinstance(renderer, str):
        yield f"prompt    as in the recipe, without its tokens: {renderer}"
    else:
        yield f"model     {recipe.variant.hub_id}"
        yield f"prompt    {' + '.join((f'{renderer.tokens(stage)} tokens', *_inputs(stage)))}"


def _inputs(stage: Stage) -> tuple[str, ...]:
    """What a stage's prompt contains besides its own text."""
    return (*(("video",) if stage.video else ()), *stage.needs)


def _number(value: float | None) -> str:
    return "of the model" if value is None else f"{value:g}"
