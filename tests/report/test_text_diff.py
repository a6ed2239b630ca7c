import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.report.text_diff import MAX_WORDS, diff_texts

pytestmark = pytest.mark.fast

texts = st.text() | st.lists(st.sampled_from(["a", "red", "car", "\u8eca", ",", ".", "\n", "\u202e"])).map(" ".join)


def test_added_words_are_separate_segments() -> None:
    added = diff_texts("A red car turns.", "A small red car slowly turns left, alone.").new
    assert added == ("A ", "small", " red car ", "slowly", " turns ", "left, alone", ".")


def test_added_sentence_keeps_its_own_full_stop() -> None:
    assert diff_texts("A car turns.", "A car turns. It rains.").new == ("A car turns. ", "It rains.", "")


def test_changed_word_is_a_segment_on_both_sides() -> None:
    difference = diff_texts("A red car turns.", "A blue car turns.")
    assert difference.old == ("A ", "red", " car turns.")
    assert difference.new == ("A ", "blue", " car turns.")
    assert difference.similarity == pytest.approx(0.8)


def test_chinese_is_compared_by_characters() -> None:
    assert diff_texts("\u7ea2\u8272\u7684\u8f66", "\u7ea2\u8272\u7684\u5c0f\u8f66").new == (
        "\u7ea2\u8272\u7684",
        "\u5c0f",
        "\u8f66",
    )


def test_combining_marks_stay_with_their_word() -> None:
    assert diff_texts("\u0915", "\u0915\u093f\u0924\u093e\u092c").new == ("", "\u0915\u093f\u0924\u093e\u092c", "")


@given(texts, texts)
def test_joined_segments_are_the_text(old: str, new: str) -> None:
    difference = diff_texts(old, new)
    for segments, text in ((difference.old, old), (difference.new, new)):
        assert "".join(segments) == text
        assert len(segments) % 2 == 1
        assert all(segments[1::2])


@given(texts, texts)
def test_common_segments_are_equal_on_both_sides(old: str, new: str) -> None:
    difference = diff_texts(old, new)
    common = ["".join("".join(segments[::2]).split()) for segments in (difference.old, difference.new)]
    assert common[0] == common[1]


@given(texts)
def test_text_equals_itself(text: str) -> None:
    difference = diff_texts(text, text)
    assert difference.old == difference.new == (text,)
    assert difference.similarity == 1


def test_long_texts_differ_between_their_common_ends() -> None:
    old = ["begin", *(f"old{number}" for number in range(MAX_WORDS)), "end"]
    new = ["begin", *(f"new{number}" for number in range(MAX_WORDS)), "end"]
    difference = diff_texts(" ".join(old), " ".join(new))
    assert difference.new == ("begin ", " ".join(new[1:-1]), " end")


@pytest.mark.parametrize("text", ["the " * 25_000, "x" * 100_000, "a b " * 25_000, "a-" * 50_000])
def test_very_long_texts_are_compared_within_seconds(text: str) -> None:
    started = time.monotonic()
    diff_texts("A red car turns. " + text[: len(text) // 2], "A blue car. " + text)
    assert time.monotonic() - started < 5
