"""Tests of the outputs of stages."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.captioning.output import (
    TEXT,
    ChoiceOutput,
    JsonOutput,
    answer_identity,
    output_identity,
    readable_text,
)
from caption_assets.captioning.quality import find_flags

pytestmark = pytest.mark.fast

YES_NO = ChoiceOutput(("yes", "no"), "yes")
ANY_JSON = JsonOutput({"type": "object"})
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.mark.parametrize(
    ("choices", "score", "problem"),
    [
        (("yes",), None, "the number of choices is 1: give at least two"),
        (("yes", "no", "yes"), None, "the choice 'yes' is there more than once: remove one"),
        (("yes", "no"), "maybe", "the score is 'maybe': name one of the choices yes, no"),
    ],
)
def test_invalid_choices_are_refused(choices: tuple[str, ...], score: str | None, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        ChoiceOutput(choices, score)


def test_text_adds_nothing_to_a_stages_identity() -> None:
    assert output_identity(TEXT) == {}
    assert output_identity(YES_NO) == {"output": {"choices": ["yes", "no"], "score": "yes"}}
    assert answer_identity(YES_NO) == {"output": {"choices": ["yes", "no"]}}
    assert output_identity(ANY_JSON) == {"output": {"json": {"type": "object"}}}


@given(JSON_VALUES)
def test_readable_text_of_json_has_its_strings_and_no_keys(value: object) -> None:
    found = readable_text(ANY_JSON, json.dumps({"a_key_that_no_text_has": value, "last": "the last string"}))
    assert found is not None
    assert found.endswith("the last string")
    assert "a_key_that_no_text_has" not in found


def test_strings_of_json_are_flagged_except_for_their_length() -> None:
    def flags(**values: object) -> tuple[str, ...]:
        return find_flags(json.dumps(values), finish_reason="stop", instruction="What is it?", output=ANY_JSON)

    assert flags(shape="circle", people=0) == ()
    assert flags(note="I'm sorry, but I cannot describe this video.") == ("refusal",)
    assert flags(scene="A street.", notes=[{"text": "I'm sorry, but I cannot describe this."}]) == ("refusal",)


def test_choice_has_no_flags() -> None:
    assert find_flags("yes", finish_reason="stop", instruction="Is it?", neighbor="yes", output=YES_NO) == ()
