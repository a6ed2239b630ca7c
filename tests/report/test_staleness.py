from __future__ import annotations

import json
from dataclasses import replace

import pytest

from caption_assets.assets.clip_manifest import manifest_code_version
from caption_assets.captioning.open_shard import RECIPE, file_metadata
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.sampling import SamplingParams
from caption_assets.report.staleness import Basis, Change, explain
from caption_assets.video.window import Windowing
from tests.stages import STAGE1, STAGE2, two_stages, with_prompts

pytestmark = pytest.mark.fast


def basis(recipe: Recipe, stage: str = STAGE2.name, **inputs: str) -> Basis:
    of = recipe.graph.stage(stage)
    return Basis(recipe.version(of), inputs, file_metadata(recipe, of))


def explained(table: str, made_from: Basis, present: Basis) -> list[str]:
    return [str(change) for change in explain(table, made_from, present)]


def test_current_table_has_no_changes() -> None:
    assert explain(STAGE2.name, basis(two_stages(), a="1"), basis(two_stages(), a="1")) == []


def test_changed_prompt_is_quoted() -> None:
    before, after = (with_prompts(two_stages(), stage1_captions=text) for text in ("Say what happens.", "Tell it all."))
    assert explained(STAGE1.name, basis(before, STAGE1.name), basis(after, STAGE1.name)) == [
        "prompt changed: 'Say what happens.' → 'Tell it all.'"
    ]
    assert explained(STAGE2.name, basis(before), basis(after)) == [
        "prompt of stage1_captions changed: 'Say what happens.' → 'Tell it all.'"
    ]


def test_long_prompts_are_cut_to_the_words_that_differ() -> None:
    before, after = (f"{'Describe the whole video. ' * 20}Use {n} sentences. {'Be exact. ' * 20}" for n in "23")
    change = str(Change("prompt", before, after))
    assert "Use 2 sentences" in change
    assert "Use 3 sentences" in change
    assert len(change) < 200
    assert change.count("…") == 4


def test_changed_sampling_and_a_new_value_are_named() -> None:
    warmer = two_stages(generation=SamplingParams(temperature=0.7))
    assert explained(STAGE2.name, basis(two_stages()), basis(warmer)) == ["generation.temperature changed: 0.1 → 0.7"]
    further = basis(two_stages())
    values = {**json.loads(further.file_metadata[RECIPE]), "dtype": "bfloat16", "seed": 1}
    further = replace(further, code="other", file_metadata={**further.file_metadata, RECIPE: json.dumps(values)})
    assert "seed changed: none → 1" in explained(STAGE2.name, basis(two_stages()), further)


@pytest.mark.parametrize(
    ("table", "name", "what"),
    [
        ("clip_manifest", "shards", "clips"),
        ("stage1_captions", "clip_manifest", "manifest"),
        ("stage1_captions", "model_weights", "weights"),
        ("stage2_captions", "stage1_captions", "captions of stage1_captions"),
    ],
)
def test_changed_input_is_named(table: str, name: str, what: str) -> None:
    assert explained(table, Basis("1", {name: "old", "b": "1"}), Basis("1", {name: "new", "b": "1"})) == [
        f"{what} changed: old → new"
    ]


def test_changed_windows_and_versions_of_a_manifest_are_named() -> None:
    frames, seconds = manifest_code_version(Windowing(), 1), manifest_code_version(Windowing(seconds=10.0), 2)
    assert explained("clip_manifest", Basis(frames), Basis(seconds)) == [
        "code version of windowing changed: 1 → 2",
        "window length changed: 256-128 → 10.0s",
    ]


def test_unknown_recipe_leaves_the_code_versions() -> None:
    assert explained(STAGE1.name, Basis("a"), basis(two_stages(), STAGE1.name))[0].startswith("code version changed: a")
