"""Two texts told apart word by word."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby

MOST_WORDS = 1000
"""Words of a text that are told apart one by one: 0.1 s at worst, where 17,000 (100,000 characters) could take minutes.

What the model may say by default, 512 tokens, is some 400 words.
"""
_PUNCTUATION = r"!-/:-@\[-`{-~\u00a1-\u00bf\u2010-\u2027\u2030-\u205e\u3001-\u3020\uff01-\uff0f\uff1a-\uff20"
_UNSPACED = r"\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
"""Kana and Chinese characters, which are set without spaces: each counts as a word."""
_is_punctuation = re.compile(rf"[{_PUNCTUATION}]").match
_WORD = re.compile(rf"[{_PUNCTUATION}{_UNSPACED}]|[^\s{_PUNCTUATION}{_UNSPACED}]+")

DiffSegments = tuple[str, ...]
"""A text cut where it begins or ceases to differ: what is common, what is not, what is common, and so on.

Joined, they are the text. Their number is odd: the first and the last may be empty.
"""


@dataclass(frozen=True, slots=True)
class Difference:
    """How one text became another."""

    old: DiffSegments
    """What is not common was taken away."""
    new: DiffSegments
    """What is not common was added."""
    similarity: float
    """Share of both texts' words that are common: 1 for the same words in the same order, 0 for none."""


def compare(old: str, new: str) -> Difference:
    """Tell two texts apart.

    What both begin and end with is common, however long they are. If more than ``MOST_WORDS`` of either are left
    between, those all count as different.
    """
    old_words, new_words = list(_WORD.finditer(old)), list(_WORD.finditer(new))
    kept = _common([word[0] for word in old_words], [word[0] for word in new_words])
    words = len(old_words) + len(new_words)
    return Difference(
        _turns(old, old_words, {one for one, _ in kept}),
        _turns(new, new_words, {other for _, other in kept}),
        2 * len(kept) / words if words else 1.0,
    )


def _common(old: Sequence[str], new: Sequence[str]) -> list[tuple[int, int]]:
    """Places of the words that are common, in both texts."""
    least = min(len(old), len(new))
    head = next((place for place in range(least) if old[place] != new[place]), least)
    tail = next((place for place in range(least - head) if old[-1 - place] != new[-1 - place]), least - head)
    old_end, new_end = len(old) - tail, len(new) - tail
    ends = [(place, place) for place in range(head)]
    ends += [(old_end + place, new_end + place) for place in range(tail)]
    if max(old_end, new_end) - head > MOST_WORDS:
        return ends
    # difflib's shortcut for words that are frequent is left on: it is what bounds the time of "the the the the".
    blocks = SequenceMatcher(None, old[head:old_end], new[head:new_end]).get_matching_blocks()
    return ends + [(head + block.a + place, head + block.b + place) for block in blocks for place in range(block.size)]


def _turns(text: str, words: Sequence[re.Match[str]], kept: set[int]) -> DiffSegments:
    """Space around words that differ is common, and space between them is not."""
    turns, done = [], 0
    for is_kept, run in groupby(range(len(words)), kept.__contains__):
        places = list(run)
        if not is_kept:
            first, last = places[0], places[-1]
            # What was added to "A car." is "It rains.", rather than ". It rains" before the same full stop.
            while last + 1 < len(words) and words[first][0] == words[last + 1][0] and _is_punctuation(words[first][0]):
                first, last = first + 1, last + 1
            begin, end = words[first].start(), words[last].end()
            turns += [text[done:begin], text[begin:end]]
            done = end
    return (*turns, text[done:])
