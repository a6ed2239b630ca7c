from __future__ import annotations

import numpy as np
import pytest

from caption_assets.captioning.text import split_words
from caption_assets.checks.near_duplicates import SAMPLE, DistinctTexts, TextGroups, count_distinct

pytestmark = pytest.mark.fast

CAR = "A red car drives along a wet road at night, past a row of parked vans and a man with an umbrella."


def groups_of(*texts: str) -> list[int]:
    groups = TextGroups()
    return [groups.group(split_words(text)) for text in texts]


def random_texts(count: int, words: int = 60, seed: int = 0) -> list[list[str]]:
    rng = np.random.default_rng(seed)
    return [[f"word{number}" for number in rng.integers(2000, size=words)] for _ in range(count)]


def test_texts_that_differ_in_case_and_punctuation_are_one_group() -> None:
    assert groups_of(CAR, CAR.upper(), CAR.replace(",", ";"), "A dog.") == [0, 0, 0, 1]


def test_text_with_a_changed_word_is_a_near_duplicate() -> None:
    assert groups_of(CAR, CAR.replace("umbrella", "dog"), CAR.replace("man", "woman")) == [0, 0, 0]


def test_texts_with_the_same_beginning_are_distinct() -> None:
    others = [f"A red car drives along a wet road {rest}" for rest in ("and stops.", "in the sun, with two children.")]
    assert groups_of(CAR, *others) == [0, 1, 2]


@pytest.mark.parametrize("text", ["", "a", "car", "a car", "\u7ea2\u8272\u7684\u8f66"])
def test_short_texts_are_grouped(text: str) -> None:
    assert groups_of(text, text, "dog", text, "dog") == [0, 0, 1, 0, 1]


def test_random_texts_are_never_merged() -> None:
    groups = TextGroups()
    assert [groups.group(words) for words in random_texts(500)] == list(range(500))


def test_every_near_duplicate_with_few_changed_words_is_found() -> None:
    rng = np.random.default_rng(1)
    [text] = random_texts(1, words=80)
    groups = TextGroups()
    groups.group(text)
    found = 0
    for number in range(200):
        changed = list(text)
        for place in rng.integers(len(text), size=2):
            changed[place] = f"other{number}"
        found += groups.group(changed) == 0
    assert found == 200


def test_few_distinct_texts_are_counted_exactly() -> None:
    shards = [DistinctTexts.of([["a"], ["b"], ["a"]]), DistinctTexts.of([["b"], ["c"]]), DistinctTexts()]
    assert count_distinct(shards) == 3
    assert count_distinct([]) == 0


def test_texts_without_repetition_are_all_distinct() -> None:
    texts = random_texts(4000)
    shards = [DistinctTexts.of(texts[begin : begin + 1000]) for begin in range(0, 4000, 1000)]
    assert [len(shard.sample) for shard in shards] == [SAMPLE] * 4
    assert count_distinct(shards) == 4000


@pytest.mark.parametrize(("shared", "shards"), [(0.1, 30), (0.5, 10)])
def test_texts_that_shards_have_in_common_are_counted_once(shared: float, shards: int) -> None:
    size = 400
    common = random_texts(round(shared * size))
    own = random_texts(shards * (size - len(common)), words=8, seed=1)
    parts = [[*common, *own[number::shards]] for number in range(shards)]
    distinct = len({" ".join(words) for part in parts for words in part})
    assert count_distinct([DistinctTexts.of(part) for part in parts]) == pytest.approx(distinct, rel=0.05)


def test_text_repeated_within_a_shard_is_counted_exactly() -> None:
    shards = [DistinctTexts.of([*random_texts(500, seed=seed), *[["same"]] * 500]) for seed in range(10)]
    assert count_distinct(shards) == pytest.approx(5001, abs=10)
