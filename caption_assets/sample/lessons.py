"""The lessons of the sample model: the questions of its recipe about a scene, and their correct answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from caption_assets.captioning.recipe_file import built_in
from caption_assets.captioning.stages import Stage
from caption_assets.sample.world import (
    VALUES,
    Scene,
    attributes_json,
    short_caption,
    stage1_caption,
    stage2_caption,
)

STAGES = built_in("sample").stages
STAGE1, STAGE2, ATTRIBUTES, ALIGNMENT, SHORT = STAGES


@dataclass(frozen=True, slots=True)
class Lesson:
    """One question about a scene."""

    stage: Stage
    answer: str
    """The correct answer."""
    text: str = ""
    """The text in the prompt's slot, if it has one."""
    matches: Mapping[str, bool] = field(default_factory=dict)
    """For ``alignment``: whether each attribute in the text is that of the scene."""

    @property
    def instruction(self) -> str:
        """The prompt with its text."""
        return self.stage.instruction(dict.fromkeys(self.stage.needs, self.text))


def lessons(scene: Scene, rng: np.random.Generator) -> list[Lesson]:
    """One lesson for each stage. Most texts in the prompts are false, so that the model reads both text and video."""
    shown = scene.attributes
    stage1 = scene.stage1 if rng.random() < 0.4 else stage1_caption(**_stage1_attributes(rng))
    wrong = None if rng.random() < 0.5 else str(rng.choice(list(VALUES)))
    claim = shown if wrong is None else {**shown, wrong: another_value(wrong, shown[wrong], rng)}
    longer = {name: str(rng.choice(values)) for name, values in VALUES.items()}
    return [
        Lesson(STAGE1, scene.stage1),
        Lesson(STAGE2, _expected_stage2(scene, stage1), stage1),
        Lesson(ATTRIBUTES, attributes_json(**shown)),
        Lesson(
            ALIGNMENT,
            "yes" if wrong is None else "no",
            stage2_caption(**claim),
            {name: name != wrong for name in VALUES},
        ),
        Lesson(SHORT, short_caption(longer["color"], longer["shape"], longer["motion"]), stage2_caption(**longer)),
    ]


def another_value(attribute: str, shown: str, rng: np.random.Generator) -> str:
    """A random value of an attribute, other than the one that is shown."""
    return str(rng.choice([value for value in VALUES[attribute] if value != shown]))


def _stage1_attributes(rng: np.random.Generator) -> dict[str, str]:
    return {name: str(rng.choice(VALUES[name])) for name in ("color", "shape", "motion")}


def _expected_stage2(scene: Scene, stage1: str) -> str:
    """The stage-2 caption: color, shape and motion of the stage-1 text, size and background of the scene."""
    _, color, shape, motion = stage1.rstrip(".").split(" ", 3)
    return stage2_caption(color, shape, motion, scene.size, scene.background)
