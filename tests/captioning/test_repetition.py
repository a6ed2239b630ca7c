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


def test_loop_has_at_least_three_equal_units() -> None:
    assert loop_length(["a", "b", "c", "a", "b", "c"]) == 0
    assert loop_length(["x", "a", "b", "c", "a", "b", "c", "a", "b", "c", "y"]) == 9
    assert loop_length(["no", "no", "no", "no"]) == 4


def test_words_of_a_repeated_ngram_are_covered() -> None:
    assert covered_share(["a", "b", "c", "d", "e", "f", "a", "b", "c", "d", "e", "g"]) == pytest.approx(5 / 12)
    assert covered_share(["a", "b", "c", "d", "a", "b", "c", "e"]) == 0


def test_short_sentences_are_not_counted_as_repeated() -> None:
    assert repeated_sentence_share("He nods. He nods. He nods.") == 0
    assert repeated_sentence_share("He nods at the man. He nods at the man.") == 0.5


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=200))
def test_variety_is_between_zero_and_one(words: list[str]) -> None:
    assert 0 < variety(words) <= 1


@given(st.integers(3, 30))
def test_repeated_sentence_is_repetitive_at_any_length(times: int) -> None:
    assert is_repetitive("The car turns left at the next junction and stops. " * times)


def test_long_text_of_distinct_captions_is_not_repetitive() -> None:
    lines = (Path(__file__).parents[2] / "benchmarks" / "texts" / "good.jsonl").read_text().splitlines()
    captions = [text["caption"] for text in map(json.loads, lines) if text["kind"] in ("driving", "general")]
    assert not is_repetitive(" ".join(captions))
