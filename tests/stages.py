"""The stages of the default recipe, and recipes of two stages with other settings or prompts."""

from dataclasses import replace
from typing import Any

from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.recipe_file import built_in
from caption_assets.store.tables import CLIP_MANIFEST

GENERAL = built_in("general")
STAGE1, STAGE2 = STAGES = GENERAL.stages
TABLE_NAMES = (CLIP_MANIFEST, *(stage.name for stage in STAGES))


def two_stages(**settings: Any) -> Recipe:
    """A recipe with these stages; by default for the sample model."""
    return Recipe(graph=GENERAL, **settings)


def with_prompts(recipe: Recipe, **prompts: str) -> Recipe:
    """The recipe with other prompts, by stage."""
    stages = tuple(replace(stage, prompt=prompts.get(stage.name, stage.prompt)) for stage in recipe.stages)
    return replace(recipe, graph=replace(recipe.graph, stages=stages))
