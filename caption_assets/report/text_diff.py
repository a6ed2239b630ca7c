"""The difference of two texts, word by word."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby

MAX_WORDS = 1000
"""Maximum number of words that are aligned one by one. 1,000 take at most 0.1 s; 17,000 (100,000 characters) could take
minutes. The default output limit of 512 tokens is about 400 words."""
_PUNCTUATION = r"!-/:-@\[-`{-~\u00a1-\u00bf\u2010-\u2027\u2030-\u205e\u3001-\u3020\uff01-\uff0f\uff1a-\uff20"
_UNSPACED = r"\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
"""Kana and Chinese characters, which are written without spaces: each counts as a word."""
_is_punctuation = re.compile(rf"[{_PUNCTUATION}]").match
_WORD = re.compile(rf"[{_PUNCTUATION}{_UNSPACED}]|[^\s{_PUNCTUATION}{_UNSPACED}]+")

DiffSegments = tuple[str, ...]
"""A text in segments that alternate between common and differing, beginning and ending with a common one.

Joined, they are the text. Common segments may be empty.
"""


@dataclass(frozen=True, slots=True)
class TextDiff:
    """The difference of an old and a new text."""

    old: DiffSegments
    """Differing segments were removed."""
    new: DiffSegments
    """Differing segments were added."""
    similarity: float
    """Share of the words of both texts that are common: 1 for the same words in the same order, 0 for none."""


def diff_texts(old: str, new: str) -> TextDiff:
    """Compare two texts.

    Common beginnings and ends are found at any length. The words between them are aligned, unless either text has more
    than ``MAX_WORDS`` of them; then all of them count as different.
    """
    old_words, new_words = list(_WORD.finditer(old)), list(_WORD.finditer(new))
    kept = _common([word[0] for word in old_words], [word[0] for word in new_words])
    words = len(old_words) + len(new_words)
    return TextDiff(
        _segments(old, old_words, {one for one, _ in kept}),
        _segments(new, new_words, {other for _, other in kept}),
        2 * len(kept) / words if words else 1.0,
    )


def _common(old: Sequence[str], new: Sequence[str]) -> list[tuple[int, int]]:
    """Positions of the common words in both texts."""
    length = min(len(old), len(new))
    head = next((place for place in range(length) if old[place] != new[place]), length)
    tail = next((place for place in range(length - head) if old[-1 - place] != new[-1 - place]), length - head)
    old_end, new_end = len(old) - tail, len(new) - tail
    ends = [(place, place) for place in range(head)]
    ends += [(old_end + place, new_end + place) for place in range(tail)]
    if head in (old_end, new_end) or max(old_end, new_end) - head > MAX_WORDS:
        return ends
    # difflib's heuristic for frequent words (autojunk) stays on: it bounds the time for "the the the the".
    blocks = SequenceMatcher(None, old[head:old_end], new[head:new_end]).get_matching_blocks()
    return ends + [(head + block.a + place, head + block.b + place) for block in blocks for place in range(block.size)]


def _segments(text: str, words: Sequence[re.Match[str]], kept: set[int]) -> DiffSegments:
    """Cut a text into segments. Space around differing words is common; space between them differs."""
    segments, done = [], 0
    for is_kept, run in groupby(range(len(words)), kept.__contains__):
        places = list(run)
        if not is_kept:
            first, last = places[0], places[-1]
            # The text added to "A car." is "It rains.", rather than ". It rains" before the same full stop.
            while last + 1 < len(words) and words[first][0] == words[last + 1][0] and _is_punctuation(words[first][0]):
                first, last = first + 1, last + 1
            begin, end = words[first].start(), words[last].end()
            segments += [text[done:begin], text[begin:end]]
            done = end
    return (*segments, text[done:])
