"""Words and sentences of texts in any script."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Sequence
from functools import cache

SCRIPTS_WITHOUT_SPACES = frozenset({"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR"})
"""Scripts without spaces between words: every letter counts as a word."""
SENTENCE_END = re.compile("(?<=[.!?\u2026\u203d])\\s+|(?<=[\u3002\uff01\uff1f\u0964\u104b\u17d4])\\s*|\n+")
"""The space after a sentence's final mark (Latin, Han, Devanagari, Burmese, Khmer), or the end of a line."""
TYPOGRAPHIC_APOSTROPHE = "\N{RIGHT SINGLE QUOTATION MARK}"


def split_words(text: str) -> list[str]:
    """Split a text into words in lower case; in scripts without spaces, into letters.

    A combining mark belongs to the word of its letter, as in Hindi and Thai.
    """
    text = text.replace(TYPOGRAPHIC_APOSTROPHE, "'").lower()
    if text.isascii():  # takes half the time: checks count the words of whole tables
        return re.findall(r"[^\W_]+(?:['-][^\W_]+)*", text)
    words = []
    for word in _word_pattern().findall(text):
        if script(word[0]) in SCRIPTS_WITHOUT_SPACES:
            words += [letter for letter in word if letter.isalnum()]
        else:
            words.append(word)
    return words


def split_sentences(text: str) -> list[str]:
    """Split a text into sentences, without the spaces around them."""
    return [sentence for part in SENTENCE_END.split(text) if (sentence := part.strip())]


def similarity(one: Sequence[str], other: Sequence[str]) -> float:
    """Jaccard similarity of two texts' sets of words, 0 to 1."""
    either = set(one) | set(other)
    return len(set(one) & set(other)) / len(either) if either else 1.0


@cache
def script(letter: str) -> str:
    """The script of a letter: the first word of its Unicode name, such as ``LATIN``, ``CYRILLIC`` or ``CJK``."""
    return unicodedata.name(letter, "UNKNOWN").split(" ")[0].split("-")[0]


@cache
def _word_pattern() -> re.Pattern[str]:
    """Letters and digits with their marks. ``re`` has no class for marks, so they are listed once, in 0.1 s."""
    marks = "".join(char for char in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(char) in ("Mn", "Mc"))
    part = rf"[^\W_](?:[^\W_]|[{marks}])*"
    return re.compile(rf"{part}(?:['-]{part})*")
