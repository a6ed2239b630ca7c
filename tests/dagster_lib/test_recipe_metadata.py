import json

import pytest

from caption_assets.captioning.open_shard import RECIPE, STAGE_PROMPT, UPSTREAM_PROMPTS, file_metadata
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.recipe_file import built_in
from caption_assets.captioning.sampling import SamplingParams
from caption_assets.dagster_lib.recipe_metadata import recipe_changes_metadata, recipe_metadata
from tests.stages import STAGE2

pytestmark = pytest.mark.fast

GENERAL = Recipe(graph=built_in("general"))
PRESENT = file_metadata(GENERAL, STAGE2)


def test_recipe_of_a_table_is_shown_with_the_prompts_upstream() -> None:
    found = recipe_metadata(PRESENT)
    assert found["recipe"] == "general"
    assert found["recipe_version"] == GENERAL.version(STAGE2)
    assert found["prompt"] == STAGE2.prompt
    assert found["upstream_prompts"].value == {"stage1_captions": GENERAL.stages[0].prompt}  # type: ignore[union-attr]


def test_table_of_an_earlier_release_has_the_same_recipe() -> None:
    former = {RECIPE: PRESENT[RECIPE], STAGE_PROMPT: STAGE2.prompt.replace("{stage1_captions}", "{caption}")}
    assert recipe_changes_metadata(former, PRESENT) == {}
    assert recipe_changes_metadata({}, PRESENT) == {}
    assert "recipe" not in recipe_metadata(former)


def test_changed_values_are_shown_one_by_one() -> None:
    warmer = file_metadata(Recipe(graph=GENERAL.graph, generation=SamplingParams(temperature=0.7)), STAGE2)
    assert str(recipe_changes_metadata(PRESENT, warmer)["changes"].value).splitlines()[2:] == [  # type: ignore[union-attr]
        "| generation.temperature | 0.1 | 0.7 |"
    ]


def test_values_that_only_one_recipe_has_are_shown() -> None:
    further = {**PRESENT, RECIPE: json.dumps({**json.loads(PRESENT[RECIPE]), "lora": ["me/mine", "1"]})}
    for former, present, row in (
        (PRESENT, further, '| lora |  | ["me/mine", "1"] |'),
        (further, PRESENT, '| lora | ["me/mine", "1"] |  |'),
    ):
        assert row in str(recipe_changes_metadata(former, present)["changes"].value)  # type: ignore[union-attr]


def test_changed_prompt_upstream_is_shown() -> None:
    former = {**PRESENT, UPSTREAM_PROMPTS: json.dumps({"stage1_captions": "Tell it."})}
    assert "| prompt of stage1_captions | Tell it. | Describe what" in str(
        recipe_changes_metadata(former, PRESENT)["changes"].value  # type: ignore[union-attr]
    )
