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
from caption_assets.captioning.text import split_words

pytestmark = pytest.mark.fast


def test_loop_has_at_least_three_equal_units() -> None:
    assert loop_length(["a", "b", "c", "a", "b", "c"]) == 0
    assert loop_length(["x", "a", "b", "c", "a", "b", "c", "a", "b", "c", "y"]) == 9
    assert loop_length(["no", "no", "no", "no"]) == 4


@given(before=st.integers(0, 20), period=st.integers(1, 12), units=st.integers(3, 5), after=st.integers(0, 20))
def test_loop_is_found_at_any_place(before: int, period: int, units: int, after: int) -> None:
    unit = [f"unit {number}" for number in range(period)]
    words = [*(f"before {number}" for number in range(before)), *units * unit, *map(str, range(after))]
    assert loop_length(words) == units * period


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
    text = "The car turns left at the next junction and stops. " * times
    assert is_repetitive(text, split_words(text))


def test_long_text_of_distinct_captions_is_not_repetitive() -> None:
    lines = (Path(__file__).parents[2] / "benchmarks" / "texts" / "good.jsonl").read_text().splitlines()
    captions = [text["caption"] for text in map(json.loads, lines) if text["kind"] in ("driving", "general")]
    text = " ".join(captions)
    assert not is_repetitive(text, split_words(text))
