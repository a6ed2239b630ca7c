from dataclasses import replace

import pytest

from caption_assets.captioning.prompts import Prompt
from caption_assets.captioning.recipe import Generation, Recipe
from caption_assets.clips.sampling import Sampling
from caption_assets.store.tables import ManifestRow, Status

pytestmark = pytest.mark.fast

WINDOW = ManifestRow("a.mp4", 0, "id", "tag", 10, Status.OK, start_frame=0, end_frame=64)
RECIPE = Recipe()
OTHER_STAGE2 = Prompt("custom", RECIPE.prompt.stage1, "Again: {caption}")


@pytest.mark.parametrize(
    "changed",
    [
        replace(RECIPE, variant=replace(RECIPE.variant, revision="2")),
        replace(RECIPE, variant=replace(RECIPE.variant, dtype="bfloat16")),
        replace(RECIPE, fp8=True),
        replace(RECIPE, regenerations=0),
        replace(RECIPE, frames=Sampling(fps=1)),
        replace(RECIPE, generation=Generation(temperature=0.5)),
        replace(RECIPE, prompt=Prompt("custom", "Say what you see.", RECIPE.prompt.stage2)),
    ],
)
def test_what_changes_a_stage_1_caption_changes_its_fingerprint_and_version(changed: Recipe) -> None:
    assert changed.fingerprint(1, WINDOW) != RECIPE.fingerprint(1, WINDOW)
    assert changed.version(1) != RECIPE.version(1)


def test_a_stage_2_prompt_leaves_stage_1_as_it_is() -> None:
    changed = replace(RECIPE, prompt=OTHER_STAGE2)
    assert changed.version(1) == RECIPE.version(1)
    assert changed.fingerprint(1, WINDOW) == RECIPE.fingerprint(1, WINDOW)
    assert changed.version(2) != RECIPE.version(2)


def test_stage_2_depends_on_the_stage_1_caption() -> None:
    assert RECIPE.fingerprint(2, WINDOW, "A red circle.") != RECIPE.fingerprint(2, WINDOW, "A blue circle.")


@pytest.mark.parametrize("changed", [{"content_tag": "new"}, {"start_frame": 1}, {"end_frame": 65}, {"prompt": "Say."}])
def test_another_window_or_content_has_another_fingerprint(changed: dict[str, int | str]) -> None:
    assert RECIPE.fingerprint(1, replace(WINDOW, **changed)) != RECIPE.fingerprint(1, WINDOW)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad", [{"temperature": -1}, {"top_p": 0}, {"repetition_penalty": 0}, {"max_output_tokens": 0}]
)
def test_generation_out_of_range_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="give"):
        Generation(**bad)  # type: ignore[arg-type]
