"""Quality flags: faults in a caption's text, found without the video."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from caption_assets.captioning.language import expected, is_mixed_script, is_wrong_language, is_wrong_script
from caption_assets.captioning.output import TEXT, JsonOutput, Output, readable_text
from caption_assets.captioning.repetition import is_repetitive
from caption_assets.captioning.text import TYPOGRAPHIC_APOSTROPHE, similarity, split_words

RULES_VERSION = 1
"""Version of the rules. Increase it when a flag is added, or when a rule or a constant of regeneration changes: stored
captions are then flagged again, and regenerated where their flags require it."""
QUALITY_RULES = "quality_rules"
"""Key of the rules' version in the file metadata of captions. Files without it have version 1."""
MIN_WORDS = 4
"""Minimum number of words; shorter captions are ``too_short`` (Cosmos Curator's limit)."""
MAX_WORDS = 1024
"""Maximum number of words; longer captions are ``too_long`` (Cosmos Curator's limit)."""
CUT_OFF = "cut_off"
TOO_SHORT = "too_short"
NEAR_DUPLICATE = "near_duplicate"
NEIGHBOR_SIMILARITY = 0.9
"""Minimum Jaccard similarity of the sets of words of two windows' captions for ``near_duplicate`` (Cosmos Curator)."""
ECHO_WORDS = 7
"""Number of consecutive words of the instruction that make a ``prompt_echo``."""
LONGEST_WORD = 45
"""Maximum number of letters in a word of a script with spaces: longer ones are garbage. The longest English and German
words in dictionaries have 45."""
SHORTEST_REPLACEMENT = 0.5
"""Minimum number of words of a regenerated answer, as a share of the first one's; see ``replaces``."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A caption with everything else that its flags depend on."""

    text: str
    """The caption with straight apostrophes."""
    words: tuple[str, ...]
    instruction: str
    """The instruction to the model, without the captions of earlier stages."""
    finish_reason: str
    neighbor: str | None
    """Caption of the previous window of the same clip."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One kind of fault."""

    name: str
    applies: Callable[[Answer], bool]
    regenerates: bool
    """Whether a caption with this flag is regenerated: only if less than 1 % of good captions have the flag, as
    ``benchmarks/quality.py`` measures."""


def find_flags(
    caption: str, *, finish_reason: str, instruction: str, neighbor: str | None = None, output: Output = TEXT
) -> tuple[str, ...]:
    """The names of a caption's flags; empty for a good caption, and for a choice.

    Args:
        caption: the answer. Of JSON its strings are judged; they may be few.
        finish_reason: vLLM's finish reason; ``length`` means that the caption was cut off.
        instruction: the instruction to the model, without the captions of earlier stages.
        neighbor: answer for the previous window of the same clip.
        output: the form of both answers.
    """
    readable = readable_text(output, caption)
    if readable is None:
        return ()
    text = readable.replace(TYPOGRAPHIC_APOSTROPHE, "'")
    other = None if neighbor is None else readable_text(output, neighbor)
    answer = Answer(text, tuple(split_words(text)), instruction, finish_reason, other)
    exempt = {TOO_SHORT} if isinstance(output, JsonOutput) else frozenset[str]()
    return tuple(flag.name for flag in FLAGS if flag.name not in exempt and flag.applies(answer))


def replaces(again: str, again_flags: Collection[str], first: str, first_flags: Collection[str]) -> bool:
    """Whether a regenerated answer is better than the first one.

    It must have fewer of the flags in ``REGENERATED``. It must not be much shorter, since it would say less, unless the
    first answer is too long or repetitive, or contains reasoning or the prompt.
    """
    if len(REGENERATED.intersection(again_flags)) >= len(REGENERATED.intersection(first_flags)):
        return False
    shrinks = len(split_words(again)) < SHORTEST_REPLACEMENT * len(split_words(first))
    return not shrinks or bool({"repetition", "too_long", "reasoning", "prompt_echo"}.intersection(first_flags))


def _any_of(
    patterns: Iterable[str], at_word: Iterable[str] = (), flags: re.RegexFlag = re.IGNORECASE
) -> re.Pattern[str]:
    """The pattern of all patterns. Those ``at_word`` match at a word's start, which is tested once for all of them."""
    words = "|".join(f"(?:{pattern})" for pattern in at_word)
    together = [rf"\b(?:{words})"] if words else []
    return re.compile("|".join([*(f"(?:{pattern})" for pattern in patterns), *together]), flags)


_REASONING = _any_of(
    (
        r"</?(?:think|thinking|thought|reasoning|analysis|scratchpad|answer)>",
        r"^\W*(?:okay|ok|alright|hmm+|wait|got it|so)\b[,.!]? (?:so|let|i|the user|the video|first|this|we|now)\b",
        r"(?:^|[.!?]\s+)(?:wait|hmm+|actually)[,.] ",
        r"\u597d\u7684[\uff0c,]|\u7528\u6237(?:\u60f3|\u8981|\u8ba9|\u5e0c\u671b)|\u8ba9\u6211(?:\u6765|\u4eec|\u60f3)"
        r"|\u6211\u9700\u8981(?:\u63cf\u8ff0|\u5206\u6790)",
    ),
    at_word=(
        r"the user (?:wants|asks|asked|is asking|has asked|requests|requested|provided|gave|would like|says|said)\b",
        r"let(?:'s| me| us) (?:think|analy[sz]e|describe|look|see|start|begin|break|check|consider|examine|go|watch"
        r"|write|figure|try|re-?read|count|recall)\b",
        r"i (?:need to|should|must|have to|will|'ll|am going to|'m going to) (?:describe|write|analy[sz]e|mention"
        r"|note|focus|look|figure|think|provide|start|make sure|avoid|keep|be careful)\b",
        r"(?:my|the) (?:task|instructions?|prompt) (?:is|are|says?|asks?|requires?)\b",
    ),
)
_META = _any_of(
    (
        r"(?:\u8fd9\u6bb5|\u8be5|\u8fd9\u4e2a|\u672c)(?:\u89c6\u9891|\u7247\u6bb5)|\u89c6\u9891(?:\u4e2d|\u5c55\u793a"
        r"|\u663e\u793a|\u91cc)|(?:\u3053\u306e)?(?:\u52d5\u753b|\u30d3\u30c7\u30aa|\u6620\u50cf)(?:\u306b|\u3067|\u306f)",
    ),
    at_word=(
        r"(?:the|this|that) (?:short |brief |given |provided )?(?:video|clip|footage|video clip|recording|film)"
        r"(?: clip| sequence| footage)?(?: then| also| first| primarily| mainly| clearly| simply)? "
        r"(?:shows?|showing|depicts?|features?|presents?|captures?|displays?|illustrates?|portrays?|begins?|starts?"
        r"|opens?|ends?|concludes?|continues?|focuses|contains|consists|appears|seems|is (?:about|of|a)|takes place"
        r"|provides|documents|showcases|highlights|follows|demonstrates)\b",
        r"(?:in|throughout|during|at the (?:start|beginning|end) of) (?:the|this) (?:video|clip|footage|recording)\b",
        r"as (?:described|mentioned|stated|noted|seen|shown|indicated|discussed) "
        r"(?:above|earlier|before|previously|in the)\b|\bas (?:described|mentioned)\b",
        r"the (?:first|previous|earlier|original|initial) (?:description|caption)\b",
        r"previous (?:frame|window|clip)s?\b",
        r"frames? (?:\d+|one|two|three)\b",
    ),
)
_REFUSAL = _any_of(
    (
        r"(?:^|[.!?:]\s+|\bbut |\bhowever,? )\W*(?:i'm|i am|we're|we are) (?:very |so |really )?(?:sorry|afraid)\b",
        r"(?:^|[.!?]\s+)sorry[,.!]",
        r"\u62b1\u6b49|\u5bf9\u4e0d\u8d77|\u4f5c\u4e3a(?:\u4e00\u4e2a|\u4e00\u4f4d)?(?:AI|\u4eba\u5de5\u667a\u80fd)|\u6211\u65e0\u6cd5"
        r"|\u6211\u4e0d\u80fd|\u7533\u3057\u8a33\u3042\u308a\u307e\u305b\u3093|\u63d0\u4f9b\u3067\u304d\u307e\u305b\u3093"
        r"|\uc8c4\uc1a1",
    ),
    at_word=(
        r"(?:apologi[sz]e|my apologies)\b",
        r"(?:i|we) (?:can ?not|can't|could not|couldn't|am unable to|am not able to|'m unable to|'m not able to"
        r"|do not have the ability to|don't have the ability to|am not capable of|won't|will not) (?:\w+ )?"
        r"(?:see|view|watch|access|provide|describe|assist|help|determine|identify|process|analy[sz]e|comply|answer"
        r"|generate|open|play|fulfil+|create|continue|discuss|see(?:ing)?|watching|viewing|display|load|directly)\b",
        r"i (?:do not|don't) (?:see|have access|have the ability|have any|have enough|have a video)\b",
        r"i'm (?:unable|not able|not capable)\b|\bi am (?:unable|not able|not capable)\b",
        r"as an? (?:ai|artificial intelligence|language model|large language model|text-based)\b",
        r"no (?:video|image|clip|content|frames?) (?:was|were|has been|have been|is|are)? ?(?:provided|attached"
        r"|uploaded|shown|given|included|available|visible)\b",
        r"(?:please|could you|can you|you could) (?:\w+ )?(?:provide|upload|share|attach|send|resend)\b",
        r"(?:unable|not possible|impossible) to (?:\w+ )?(?:view|process|access|load|open|describe|analy[sz]e|provide"
        r"|watch|determine what|play)\b",
        r"(?:content policy|safety guidelines|against my|violates|usage polic)",
    ),
)
_BOILERPLATE = _any_of(
    (
        r"^\W*(?:sure|certainly|of course|absolutely|great|understood|no problem)\b(?: thing)?[,.!:]",
        r"^\W*(?:here(?: is|'s| are)|below is|the following is)\b.{0,80}?"
        r"(?:description|caption|summary|account|version|breakdown|overview|rewrite)",
        r"^\W*(?:(?:fuller |detailed |final |revised |refined |video |enhanced )?"
        r"(?:caption|description|answer|output|response|summary))\W{0,3}:",
        r"\b(?:let me know|feel free|i hope (?:this|that|it)|hope this helps|would you like|do you want me"
        r"|if you (?:need|have|want|would like) (?:any|more|further|me|a)|is there anything else|i can also"
        r"|happy to)\b",
        r"^\W*(?:\u5f53\u7136|\u4ee5\u4e0b\u662f|\u4e0b\u9762\u662f)",
    )
)
_CONTROL = _any_of(
    (
        r"<\|[^|>\n]{0,40}\|?>?",
        r"</?s>|<(?:pad|unk|bos|eos|image|video|audio|img|start_of_turn|end_of_turn|eot|endoftext)>|<0x[0-9A-F]{2}>",
        r"\[/?INST\]|<</?SYS>>|\[(?:PAD|UNK|CLS|SEP|MASK|EOS|BOS)\]|\b(?:im_start|im_end|vision_start|vision_end)\b",
        r"(?:^|\n)\s*(?:user|assistant|system|human)\s*(?::|\n|$)",
        r"</?(?:tool_call|function|observation)>",
    )
)
_MARKUP = _any_of(
    (
        r"^#{1,6}\s+\S",
        r"\*\*[^*\n]+\*\*",
        r"```",
        r"</?(?:p|br|div|span|b|i|u|em|strong|ul|ol|li|h[1-6]|html|body|table|tr|td)\b[^>]*>",
        r"^\s*\|.+\|\s*$",
        r"\A\s*\{.*[\"'].*:.*\}\s*\Z|\A\s*\[\s*\{.*\}\s*\]\s*\Z",
        r"\\(?:boxed|text|begin|frac)\{|\\n",
    ),
    flags=re.IGNORECASE | re.MULTILINE | re.DOTALL,
)
_MARKUP_REQUESTED = _any_of((r"\b(?:json|markdown|html|xml|yaml|heading|bold|table|bullet)",))
_MOJIBAKE = re.compile("\u00e2\u20ac|\u00c3[\u0080-\u00bf]|\u00c2[\u00a0-\u00bf]")
_RUN = re.compile(r"([^\s.\-_=*])\1{7,}|([.\-_=*])\2{19,}")
_QUOTED = re.compile('["\u201c\u300c][^"\u201d\u300d]*["\u201d\u300d]')


def _refuses(answer: Answer) -> bool:
    return bool(_REFUSAL.search(_QUOTED.sub(" ", answer.text)))


def _echoes(answer: Answer) -> bool:
    instruction, words = split_words(answer.instruction), answer.words
    ngrams = {tuple(instruction[start : start + ECHO_WORDS]) for start in range(len(instruction) - ECHO_WORDS + 1)}
    return any(words[start : start + ECHO_WORDS] in ngrams for start in range(len(words) - ECHO_WORDS + 1))


def _is_broken(answer: Answer) -> bool:
    """Whether a text has replacement or control characters, mojibake, endless words or runs of one character."""
    text = answer.text
    if "\N{REPLACEMENT CHARACTER}" in text or _MOJIBAKE.search(text) or _RUN.search(text):
        return True
    if any(unicodedata.category(char) in ("Cc", "Co", "Cn", "Cs") and char not in "\n\t\r" for char in set(text)):
        return True
    return any(len(word) > LONGEST_WORD and "/" not in word for word in answer.words)


def _is_near_duplicate(answer: Answer) -> bool:
    return answer.neighbor is not None and similarity(answer.words, split_words(answer.neighbor)) >= NEIGHBOR_SIMILARITY


FLAGS = (
    Flag(TOO_SHORT, lambda answer: len(answer.words) < MIN_WORDS, regenerates=True),
    Flag("too_long", lambda answer: len(answer.words) > MAX_WORDS, regenerates=True),
    Flag("repetition", lambda answer: is_repetitive(answer.text, answer.words), regenerates=True),
    Flag(NEAR_DUPLICATE, _is_near_duplicate, regenerates=False),
    Flag("refusal", _refuses, regenerates=True),
    Flag("boilerplate", lambda answer: bool(_BOILERPLATE.search(answer.text)), regenerates=True),
    Flag("reasoning", lambda answer: bool(_REASONING.search(_QUOTED.sub(" ", answer.text))), regenerates=True),
    Flag("meta", lambda answer: bool(_META.search(answer.text)), regenerates=False),
    Flag("prompt_echo", _echoes, regenerates=True),
    Flag("control_tokens", lambda answer: bool(_CONTROL.search(answer.text)), regenerates=True),
    Flag("broken_text", _is_broken, regenerates=True),
    Flag("wrong_script", lambda answer: is_wrong_script(answer.text, expected(answer.instruction)), regenerates=True),
    Flag("mixed_script", lambda answer: is_mixed_script(answer.text, expected(answer.instruction)), regenerates=True),
    Flag(
        "wrong_language",
        lambda answer: is_wrong_language(answer.words, expected(answer.instruction)),
        regenerates=True,
    ),
    Flag(
        "markup",
        lambda answer: not _MARKUP_REQUESTED.search(answer.instruction) and bool(_MARKUP.search(answer.text)),
        regenerates=True,
    ),
    Flag(CUT_OFF, lambda answer: answer.finish_reason == "length", regenerates=True),
)
"""All flags, in the order of the column ``flags``."""
REGENERATED = frozenset(flag.name for flag in FLAGS if flag.regenerates)
"""Names of the flags that cause a regeneration."""
