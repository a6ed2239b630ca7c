"""The recipe of the sample model: it has to ask what the model was trained on."""

from __future__ import annotations

import numpy as np
import pytest

from caption_assets.captioning.prompts import text_hash
from caption_assets.captioning.recipe_file import built_in
from caption_assets.sample.world import random_scene

pytestmark = pytest.mark.fast

STAGES = built_in("sample").stages


def test_prompts_are_those_that_the_model_was_trained_on() -> None:
    assert {stage.name: text_hash(stage.prompt) for stage in STAGES} == {
        "stage1_captions": "5246b14402743d7e",
        "stage2_captions": "ddf7558d659009e0",
        "attributes": "03dab41ede776433",
        "alignment": "e2f6566c99596dd6",
        "short": "258f323360fd0113",
    }


def test_scene_has_an_answer_to_each_stage() -> None:
    scene = random_scene(np.random.default_rng(0), 160, 120)
    assert list(scene.answers) == [stage.name for stage in STAGES]
