import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.captioning.text import similarity, split_sentences, split_words

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man's well-kept car, 24 km/h.", ["a", "man's", "well-kept", "car", "24", "km", "h"]),
        ("It\N{RIGHT SINGLE QUOTATION MARK}s", ["it's"]),
        ("红色的圆", ["红", "色", "的", "圆"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("น้ำ", ["น", "ำ"]),
    ],
    ids=["latin", "apostrophe", "han", "devanagari", "thai"],
)
def test_words_are_split_by_script(text: str, words: list[str]) -> None:
    assert split_words(text) == words


def test_sentences_are_split_at_the_marks_of_their_script() -> None:
    assert split_sentences("One. Two! Three?\n- four") == ["One.", "Two!", "Three?", "- four"]
    assert split_sentences("一。二！") == ["一。", "二！"]


@given(st.text(), st.text())
def test_similarity_is_symmetric_and_full_for_the_same_words(one: str, other: str) -> None:
    words, others = split_words(one), split_words(other)
    assert 0 <= similarity(words, others) == similarity(others, words) <= 1
    assert similarity(words, list(reversed(words))) == 1
