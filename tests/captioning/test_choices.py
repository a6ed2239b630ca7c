"""Tests of choices: their tokens, and the probabilities from vLLM's log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.captioning.choices import Choices, SplitChoice
from caption_assets.captioning.output import ChoiceOutput

pytestmark = pytest.mark.fast


class CharacterTokenizer:
    """A tokenizer with a token for each character, in lower case."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [ord(character) for character in text.lower()]

    def decode(self, tokens: list[int]) -> str:
        return "".join(map(chr, tokens))


CHOICES = Choices(CharacterTokenizer())


def answer(logprobs: Mapping[int, float]) -> Any:
    """VLLM's output of one token."""
    return SimpleNamespace(logprobs=[{token: SimpleNamespace(logprob=value) for token, value in logprobs.items()}])


def test_choices_have_their_tokens_in_order() -> None:
    assert CHOICES.tokens(ChoiceOutput(("n", "y"))) == {ord("n"): "n", ord("y"): "y"}


def test_choice_of_several_tokens_is_refused_with_its_tokens() -> None:
    with pytest.raises(SplitChoice, match=r"the choice 'yes' is 3 tokens of this model \('y' 'e' 's'\), .*: use a"):
        CHOICES.tokens(ChoiceOutput(("y", "yes")))


def test_two_choices_with_the_same_token_are_refused() -> None:
    with pytest.raises(SplitChoice, match="the choices 'y' and 'Y' are the same token of this model: rename one"):
        CHOICES.tokens(ChoiceOutput(("y", "Y")))


def test_probabilities_are_among_the_choices_only() -> None:
    logprobs = {ord("y"): math.log(0.3), ord("n"): math.log(0.1), ord("m"): math.log(0.6)}
    found = CHOICES.probabilities(ChoiceOutput(("y", "n")), answer(logprobs))
    assert found == pytest.approx({"y": 0.75, "n": 0.25})


@given(st.lists(st.integers(-10_000, 0), min_size=2, max_size=26))
def test_probabilities_of_any_log_probabilities_have_the_sum_1(logprobs: list[int]) -> None:
    choices = tuple(chr(ord("a") + number) for number in range(len(logprobs)))
    tokens = {ord(choice): logprob for choice, logprob in zip(choices, logprobs, strict=True)}
    found = CHOICES.probabilities(ChoiceOutput(choices), answer(tokens))
    assert list(found) == list(choices)
    assert math.isclose(sum(found.values()), 1.0)
    assert all(0 <= probability <= 1 for probability in found.values())
    assert tokens[ord(max(found, key=found.__getitem__))] == max(logprobs)
