"""Language checks: the expected language of a caption, and whether a text is in another one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from caption_assets.captioning.text import script, split_words

MIN_LETTERS = 4
"""Minimum number of letters for a check of the script."""
MIN_WORDS = 12
"""Minimum number of words for a check of the language by function words."""
MIN_KANA = 0.1
"""Minimum share of kana among the letters of a Japanese text. A Chinese text has none."""
FUNCTION_WORD_SHARE = 0.12
"""Minimum share of a language's function words in a text that counts as written in it."""
FUNCTION_WORD_RATIO = 3.0
"""Minimum ratio of another language's function words to the expected one's in a text in the wrong language."""
_QUOTED = re.compile("[\"\u201c\u201e\u00ab\u300c\u300e(\uff08][^\"\u201d\u00bb\u300d\u300f)\uff09]*"
                     "[\"\u201d\u00bb\u300d\u300f)\uff09]")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Language:
    """A language that a prompt can request."""

    name: str
    """In English, lower case."""
    scripts: frozenset[str]
    """Scripts of its letters, by the first word of their Unicode names."""
    own_name: str = ""
    """Regular expression of the language's own name for itself."""
    function_words: frozenset[str] = frozenset()
    """Frequent words that distinguish it from other languages of the same script."""


def _language(name: str, scripts: str, own_name: str = "", function_words: str = "") -> Language:
    return Language(name, frozenset(scripts.split()), own_name, frozenset(function_words.split()))


LANGUAGES = (
    _language("english", "LATIN", "", "the a an and of in is with on to his her while from its as"),
    _language("german", "LATIN", "deutsch", "der die das und ist ein eine einen mit auf von im dem den sich nach wird"),
    _language("french", "LATIN", "français", "le la les et des un une est dans du avec sur qui il elle au aux"),
    _language("spanish", "LATIN", "español", "el la los las y de un una en con que es se por del al su"),
    _language("italian", "LATIN", "italiano", "il lo gli e di un una che è con per del della nel sul si"),
    _language("portuguese", "LATIN", "português", "o os e de um uma em com que é do da no na se por"),
    _language("dutch", "LATIN", "nederlands", "de het een en van in is op met zijn aan die naar voor"),
    _language("chinese", "CJK", "中文|汉语|漢語|普通话"),
    _language("japanese", "CJK HIRAGANA KATAKANA", "日本語"),
    _language("korean", "HANGUL", "한국어"),
    _language("russian", "CYRILLIC", "русск"),
    _language("ukrainian", "CYRILLIC", "українськ"),
    _language("arabic", "ARABIC", "العربية"),
    _language("hebrew", "HEBREW", "עברית"),
    _language("hindi", "DEVANAGARI", "हिन्दी|हिंदी"),
    _language("thai", "THAI", "ไทย"),
    _language("greek", "GREEK", "ελληνικά"),
)
_BY_NAME = {language.name: language for language in LANGUAGES}
_REQUESTED = re.compile(
    rf"\b(?:in|into)\s+(?:\w+\s+)?({'|'.join(_BY_NAME)})\b|\b({'|'.join(_BY_NAME)})\s+(?:caption|description|text|only)\b",
    re.IGNORECASE,
)
_LATIN = frozenset({"LATIN"})


@dataclass(frozen=True, slots=True)
class Expectation:
    """The language of a caption, as far as its prompt determines it."""

    scripts: frozenset[str]
    """Scripts of its letters; empty if unknown."""
    language: Language | None
    """The language, if the prompt names one or is clearly written in one."""


@lru_cache  # thousands of captions have the same instruction
def expected(instruction: str) -> Expectation:
    """The language that an instruction names ("in Japanese"), otherwise the language of the instruction."""
    if named := _REQUESTED.search(instruction):
        language = _BY_NAME[(named[1] or named[2]).lower()]
        return Expectation(language.scripts, language)
    for language in LANGUAGES:
        if language.own_name and re.search(language.own_name, instruction, re.IGNORECASE):
            return Expectation(language.scripts, language)
    letters = _scripts(instruction)
    if not letters:
        return Expectation(frozenset(), None)
    if kana_share(letters) >= MIN_KANA:
        return Expectation(_BY_NAME["japanese"].scripts, _BY_NAME["japanese"])
    main = letters.most_common(1)[0][0]
    if main == "CJK":
        return Expectation(_BY_NAME["chinese"].scripts, _BY_NAME["chinese"])
    return Expectation(frozenset({main}), _written_in(Counter(split_words(instruction))) if main == "LATIN" else None)


def is_wrong_script(text: str, expectation: Expectation) -> bool:
    """Whether most letters are not in the expected script, or kana are missing in Japanese or present in Chinese."""
    letters = _scripts(text)
    if not expectation.scripts or letters.total() < MIN_LETTERS:
        return False
    if 2 * sum(letters[name] for name in expectation.scripts) < letters.total():
        return True
    if "HIRAGANA" in expectation.scripts:
        return kana_share(letters) < MIN_KANA
    return expectation.scripts == {"CJK"} and kana_share(letters) >= MIN_KANA


def is_mixed_script(text: str, expectation: Expectation) -> bool:
    """Whether a text in Latin script switches to another script outside of quotation marks and parentheses.

    The reverse is normal: Chinese and Russian texts contain Latin names.
    """
    if expectation.scripts != _LATIN:
        return False
    letters = _scripts(_QUOTED.sub(" ", text))
    foreign = letters.total() - letters["LATIN"]
    return foreign >= 2 and letters["LATIN"] >= foreign


def is_wrong_language(words: Sequence[str], expectation: Expectation) -> bool:
    """Whether a text of these words is in the expected script but clearly in another language."""
    language = expectation.language
    if language is None or not language.function_words:
        return False
    counts = Counter(words)
    found = _written_in(counts)
    if found is None or found == language:
        return False
    return _function_words(counts, found) >= FUNCTION_WORD_RATIO * _function_words(counts, language)


def kana_share(letters: Counter[str]) -> float:
    """Share of kana among letters counted by script, 0 to 1."""
    return (letters["HIRAGANA"] + letters["KATAKANA"]) / letters.total() if letters else 0.0


def _scripts(text: str) -> Counter[str]:
    """Number of letters by script."""
    found = Counter[str]()
    for char, count in Counter(text).items():
        if char.isalpha():
            found[script(char)] += count
    return found


def _written_in(words: Counter[str]) -> Language | None:
    """The Latin-script language with the most function words in a text; None if there are too few."""
    if words.total() < MIN_WORDS:
        return None
    best = max(LANGUAGES, key=lambda language: _function_words(words, language))
    return best if _function_words(words, best) >= FUNCTION_WORD_SHARE * words.total() else None


def _function_words(words: Counter[str], language: Language) -> int:
    return sum(words[word] for word in language.function_words)
