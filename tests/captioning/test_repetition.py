import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.captioning.repetition import (
    covered_share,
    is_repetitive,
    loop_length,
    repeated_sentence_share,
    variety,
)

pytestmark = pytest.mark.fast


def test_a_loop_is_three_equal_units_or_more() -> None:
    assert loop_length(["a", "b", "c", "a", "b", "c"]) == 0
    assert loop_length(["x", "a", "b", "c", "a", "b", "c", "a", "b", "c", "y"]) == 9
    assert loop_length(["no", "no", "no", "no"]) == 4


def test_words_of_an_ngram_that_occurred_before_are_covered() -> None:
    assert covered_share(["a", "b", "c", "d", "e", "f", "a", "b", "c", "d", "e", "g"]) == pytest.approx(5 / 12)
    assert covered_share(["a", "b", "c", "d", "a", "b", "c", "e"]) == 0


def test_sentences_of_a_few_words_are_not_counted_as_repeated() -> None:
    assert repeated_sentence_share("He nods. He nods. He nods.") == 0
    assert repeated_sentence_share("He nods at the man. He nods at the man.") == 0.5


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=200))
def test_variety_is_a_share(words: list[str]) -> None:
    assert 0 < variety(words) <= 1


@given(st.integers(3, 30))
def test_a_text_said_again_and_again_is_repetitive_at_any_length(times: int) -> None:
    assert is_repetitive("The car turns left at the next junction and stops. " * times)


def test_a_long_text_is_not_repetitive_for_its_length_alone() -> None:
    lines = (Path(__file__).parents[2] / "benchmarks" / "texts" / "good.jsonl").read_text().splitlines()
    captions = [text["caption"] for text in map(json.loads, lines) if text["kind"] in ("driving", "general")]
    assert not is_repetitive(" ".join(captions))
