"""The lessons of the sample model."""

from __future__ import annotations

import json

import numpy as np
import pytest

from caption_assets.sample.lessons import STAGES, Lesson, lessons
from caption_assets.sample.world import Scene, random_scene

pytestmark = pytest.mark.fast

SEEDS = range(200)


def draw(seed: int) -> tuple[Scene, dict[str, Lesson]]:
    """A scene, and its lessons by stage."""
    rng = np.random.default_rng(seed)
    scene = random_scene(rng, 320, 240)
    return scene, {lesson.stage.name: lesson for lesson in lessons(scene, rng)}


def test_each_stage_has_a_lesson_with_its_text_in_the_prompt() -> None:
    _, drawn = draw(0)
    assert list(drawn) == [stage.name for stage in STAGES]
    for lesson in drawn.values():
        assert bool(lesson.text) == bool(lesson.stage.needs)
        assert lesson.text in lesson.instruction


def test_stage2_keeps_what_the_text_says_and_adds_what_the_video_shows() -> None:
    for seed in SEEDS:
        scene, drawn = draw(seed)
        lesson = drawn["stage2_captions"]
        assert lesson.text.removeprefix("A ").removesuffix(".") in lesson.answer
        assert lesson.answer.startswith(f"A {scene.size} ")
        assert lesson.answer.endswith(f" on a {scene.background} background.")


def test_alignment_is_no_if_one_attribute_of_the_text_is_wrong() -> None:
    answers = set()
    for seed in SEEDS:
        scene, drawn = draw(seed)
        lesson = drawn["alignment"]
        wrong = [name for name, matches in lesson.matches.items() if not matches]
        assert [name for name, value in scene.attributes.items() if value not in lesson.text] == wrong
        assert lesson.answer == ("no" if wrong else "yes")
        assert (lesson.text == scene.stage2) == (not wrong)
        answers.add((lesson.answer, *wrong))
    assert len(answers) == 6  # every attribute, and none


def test_short_says_what_the_text_says() -> None:
    texts = [draw(seed)[1]["short"] for seed in SEEDS]
    for lesson in texts:
        named, motion = lesson.answer.split(", ")
        assert f" {named} {motion} " in lesson.text


def test_attributes_are_those_of_the_scene() -> None:
    scene, drawn = draw(3)
    fields = json.loads(drawn["attributes"].answer)
    assert fields.pop("colour") == scene.color
    assert fields == {name: value for name, value in scene.attributes.items() if name != "color"}
