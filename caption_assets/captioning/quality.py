"""What is wrong with a caption as a text: known without looking at the video, cheap, and told by name."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

TOO_SHORT = "too_short"
TOO_LONG = "too_long"
REPETITION = "repetition"
NEAR_DUPLICATE = "near_duplicate"
REFUSAL = "refusal"
BOILERPLATE = "boilerplate"
WRONG_SCRIPT = "wrong_script"
CUT_OFF = "cut_off"

TYPOGRAPHIC_APOSTROPHE = "\N{RIGHT SINGLE QUOTATION MARK}"

WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")
SCRIPTS_WITHOUT_SPACES = frozenset({"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR"})
"""Scripts in which every character counts as a word: they set no spaces between words."""
_EAST_ASIAN = frozenset({"CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO"})
_REFUSAL = re.compile(
    r"^\W*(?:i(?:'m| am) (?:sorry|unable|not able)|sorry\b|i (?:can(?:no|')t|do(?: not|n't) (?:have|see))\b"
    r"|as an ai\b|unfortunately, i\b|please (?:provide|upload|share)\b)",
    re.IGNORECASE,
)
_BOILERPLATE = re.compile(
    r"^\W*(?:(?:sure|certainly|of course)[,!.]|here(?: is|'s| are)\b.{0,60}(?:description|caption|summary))",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class QualityLimits:
    """From where on a caption is flagged. Defaults are those that Cosmos Curator uses."""

    min_words: int = 4
    max_words: int = 1024
    top_word_share: float = 0.5
    """Share of all words that one word may have."""
    trigram_repeats: int = 3
    """Times that the same three words in a row may not be reached."""
    unique_share: float = 0.4
    """Least share of different words."""
    neighbour_similarity: float = 0.9
    """Jaccard similarity of the sets of words from which on two windows say the same."""
    repetition_words: int = 12
    """Words below which nothing is called a repetition: a short caption repeats its articles."""
    script_share: float = 0.5
    """Least share of letters that belong to the instruction's own script."""


LIMITS = QualityLimits()


def find_flags(
    caption: str, *, finish_reason: str, instruction: str, neighbour: str | None = None, limits: QualityLimits = LIMITS
) -> tuple[str, ...]:
    """The flags of a caption, none if nothing is wrong with it.

    Args:
        caption: the text.
        finish_reason: why the model stopped: ``length`` means that it was cut off.
        instruction: what the model was asked: the caption should be in its script.
        neighbour: caption of the window before it in the same clip.
        limits: what is still good.
    """
    caption = caption.replace(TYPOGRAPHIC_APOSTROPHE, "'")
    words = split_words(caption)
    found = {
        TOO_SHORT: len(words) < limits.min_words,
        TOO_LONG: len(words) > limits.max_words,
        REPETITION: _repeats(words, limits),
        NEAR_DUPLICATE: neighbour is not None
        and similarity(words, split_words(neighbour)) >= limits.neighbour_similarity,
        REFUSAL: bool(_REFUSAL.match(caption)),
        BOILERPLATE: bool(_BOILERPLATE.match(caption)),
        WRONG_SCRIPT: _wrong_script(caption, instruction, limits),
        CUT_OFF: finish_reason == "length",
    }
    return tuple(flag for flag, is_so in found.items() if is_so)


def split_words(text: str) -> list[str]:
    """The words of a text in lower case; in scripts without spaces, its characters."""
    if text.isascii():  # half the time: checks count the words of whole tables
        return WORD.findall(text.lower())
    words = []
    for word in WORD.findall(text.lower()):
        words += list(word) if _script(word[0]) in SCRIPTS_WITHOUT_SPACES else [word]
    return words


def similarity(one: Sequence[str], other: Sequence[str]) -> float:
    """Jaccard similarity of two texts' sets of words: 1 for the same words, 0 for none in common."""
    either = set(one) | set(other)
    return len(set(one) & set(other)) / len(either) if either else 1.0


def _repeats(words: Sequence[str], limits: QualityLimits) -> bool:
    if len(words) < limits.repetition_words:
        return False
    counts = Counter(words)
    trigrams = Counter(zip(words, words[1:], words[2:], strict=False))
    return (
        counts.most_common(1)[0][1] >= limits.top_word_share * len(words)
        or trigrams.most_common(1)[0][1] >= limits.trigram_repeats
        or len(counts) < limits.unique_share * len(words)
    )


def _wrong_script(caption: str, instruction: str, limits: QualityLimits) -> bool:
    """Whether most letters are of another script than most letters of the instruction."""
    asked = Counter(_script(letter) for letter in instruction if letter.isalpha())
    said = Counter(_script(letter) for letter in caption if letter.isalpha())
    if not asked or not said:
        return False
    expected = asked.most_common(1)[0][0]
    family = _EAST_ASIAN if expected in _EAST_ASIAN else {expected}
    return sum(count for script, count in said.items() if script in family) < limits.script_share * said.total()


def _script(letter: str) -> str:
    """The first word of a letter's Unicode name, which is its script: ``LATIN``, ``CYRILLIC``, ``CJK``."""
    return unicodedata.name(letter, "UNKNOWN").split(" ")[0].split("-")[0]
