"""Repetition measures of texts, independent of their length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import eq

from caption_assets.captioning.text import split_sentences, split_words

NGRAM_WORDS = 5
"""Number of words in an n-gram: good captions repeat noun phrases of three or four words."""
MAX_LOOP_PERIOD = 60
"""Maximum number of words in the repeated unit of a loop."""
VARIETY_WORDS = 50
"""Number of consecutive words in which different words are counted, so that the share does not shrink with the text's
length (moving-average type-token ratio: Covington and McFall, Journal of Quantitative Linguistics 17, 2010)."""
SENTENCE_WORDS = 4
"""Minimum number of words in a sentence that counts as repeated."""


@dataclass(frozen=True, slots=True)
class RepetitionLimits:
    """Limits beyond which a text is repetitive; ``benchmarks/quality.py`` measures them on good and bad captions."""

    min_words: int = 8
    """A shorter text is never repetitive."""
    covered: float = 0.2
    """Maximum share of words in n-grams that occurred before."""
    loop_words: int = 12
    """Minimum number of words in a loop: three or more equal units in a row."""
    loop_share: float = 0.3
    """Minimum share of all words in a loop, for texts in which that is less than ``loop_words``."""
    repeated_sentences: float = 0.25
    """Maximum share of sentences that occurred before."""
    variety: float = 0.55
    """Minimum share of different words in ``VARIETY_WORDS`` consecutive ones, on average."""
    variety_words: int = 20
    """Minimum number of words for the check of variety: shorter texts repeat words by chance."""
    top_word: float = 0.5
    """Maximum share of one word among all words."""


LIMITS = RepetitionLimits()


def is_repetitive(text: str, words: Sequence[str], limits: RepetitionLimits = LIMITS) -> bool:
    """Whether a text of these words repeats words, phrases or sentences more than a good caption of its length does."""
    if len(words) < limits.min_words:
        return False
    loop = loop_length(words)
    return (
        loop >= limits.loop_words
        or loop >= max(limits.loop_share * len(words), limits.min_words / 2)
        or covered_share(words) > limits.covered
        or repeated_sentence_share(text) > limits.repeated_sentences
        or (len(words) >= limits.variety_words and variety(words) < limits.variety)
        or Counter(words).most_common(1)[0][1] > limits.top_word * len(words)
    )


def covered_share(words: Sequence[str], size: int = NGRAM_WORDS) -> float:
    """Share of words in n-grams of ``size`` words that occurred before, 0 to 1."""
    seen: set[tuple[str, ...]] = set()
    covered = [False] * len(words)
    for start in range(len(words) - size + 1):
        ngram = tuple(words[start : start + size])
        if ngram in seen:
            covered[start : start + size] = [True] * size
        seen.add(ngram)
    return sum(covered) / len(words) if words else 0.0


def loop_length(words: Sequence[str]) -> int:
    """Number of words in the longest run of three or more equal units; 0 if there is none."""
    longest = 0
    for period in range(1, min(MAX_LOOP_PERIOD, len(words) // 3) + 1):
        # Every loop contains one of these places, which rules out most periods.
        if not any(map(eq, words[2 * period - 1 :: 2 * period], words[3 * period - 1 :: 2 * period])):
            continue
        run = 0
        for word, later in zip(words, words[period:], strict=False):
            run = run + 1 if word == later else 0
            if run >= 2 * period:
                longest = max(longest, run + period)
    return longest


def repeated_sentence_share(text: str) -> float:
    """Share of a text's sentences that occurred before, 0 to 1. Short sentences do not count."""
    sentences = [tuple(words) for part in split_sentences(text) if len(words := split_words(part)) >= SENTENCE_WORDS]
    return 1 - len(set(sentences)) / len(sentences) if sentences else 0.0


def variety(words: Sequence[str], window: int = VARIETY_WORDS) -> float:
    """Mean share of different words in ``window`` consecutive ones, or in the whole of a shorter text."""
    if not words:
        return 1.0
    window = min(window, len(words))
    counts = Counter(words[:window])
    total = len(counts)
    for leaving, entering in zip(words, words[window:], strict=False):
        counts[entering] += 1
        counts[leaving] -= 1
        if not counts[leaving]:
            del counts[leaving]
        total += len(counts)
    return total / (window * (len(words) - window + 1))
