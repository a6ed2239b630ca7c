"""The words and sentences of a text, in any script."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Sequence
from functools import cache

SCRIPTS_WITHOUT_SPACES = frozenset({"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR"})
"""Scripts that set no spaces between words: every character counts as a word."""
SENTENCE_END = re.compile("(?<=[.!?\u2026\u203d])\\s+|(?<=[\u3002\uff01\uff1f\u0964\u104b\u17d4])\\s*|\n+")
"""The space after a sentence's last mark, or a line's end: Latin, Han, Devanagari, Burmese and Khmer marks."""
TYPOGRAPHIC_APOSTROPHE = "\N{RIGHT SINGLE QUOTATION MARK}"


def split_words(text: str) -> list[str]:
    """The words of a text in lower case; in scripts without spaces, its letters.

    Combining marks belong to the word of the letter that they stand on, as in Hindi and Thai.
    """
    text = text.replace(TYPOGRAPHIC_APOSTROPHE, "'").lower()
    if text.isascii():  # half the time: checks count the words of whole tables
        return re.findall(r"[^\W_]+(?:['-][^\W_]+)*", text)
    words = []
    for word in _word_pattern().findall(text):
        if script(word[0]) in SCRIPTS_WITHOUT_SPACES:
            words += [letter for letter in word if letter.isalnum()]
        else:
            words.append(word)
    return words


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, without the spaces around them."""
    return [sentence for part in SENTENCE_END.split(text) if (sentence := part.strip())]


def similarity(one: Sequence[str], other: Sequence[str]) -> float:
    """Jaccard similarity of two texts' sets of words: 1 for the same words, 0 for none in common."""
    either = set(one) | set(other)
    return len(set(one) & set(other)) / len(either) if either else 1.0


@cache
def script(letter: str) -> str:
    """The first word of a letter's Unicode name, which is its script: ``LATIN``, ``CYRILLIC``, ``CJK``."""
    return unicodedata.name(letter, "UNKNOWN").split(" ")[0].split("-")[0]


@cache
def _word_pattern() -> re.Pattern[str]:
    """Letters and digits with the marks on them. ``re`` has no class of marks: it is listed once, in 0.1 s."""
    marks = "".join(char for char in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(char) in ("Mn", "Mc"))
    part = rf"[^\W_](?:[^\W_]|[{marks}])*"
    return re.compile(rf"{part}(?:['-]{part})*")
