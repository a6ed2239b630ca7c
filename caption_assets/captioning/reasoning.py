"""The removal of reasoning from the answers of models that reason first."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from caption_assets.errors import CaptionAssetsError

PARSERS = {
    "gemma4": "gemma4",
    "glm4_moe": "glm45",
    "glm4v": "glm45",
    "glm4v_moe": "glm45",
    "glm46v": "glm45",
    "kimi_k25": "kimi_k2",
    "minicpmv4_6": "minicpmv",
    "minicpmv4_7": "minicpmv",
    "qwen3": "qwen3",
    "qwen3_5": "qwen3",
    "qwen3_5_moe": "qwen3",
    "qwen3_moe": "qwen3",
    "qwen3_vl": "qwen3",
    "qwen3_vl_moe": "qwen3",
}
"""vLLM's reasoning parser for each model type that may reason (from vLLM's recipes)."""
_NAMES = "(?:seed:)?(?:think|thinking|thought|thoughts|reasoning|reflection|analysis|scratchpad)"
_START = re.compile(rf"<{_NAMES}>|◁think▷|\[THINK\]|<\|START_THINKING\|>", re.IGNORECASE)
_END = re.compile(rf"</{_NAMES}>|◁/think▷|\[/THINK\]|<\|END_THINKING\|>", re.IGNORECASE)
"""Start and end marks of reasoning: those of Qwen, GLM, Seed, Kimi, Mistral, Cohere, and others."""
_QUOTED = re.compile(
    rf"(?<![^\s(\[{{])(?:[\"'\u201c\u2018\u300c](?:{_START.pattern}|{_END.pattern})[\"'\u201d\u2019\u300d]"
    rf"|`(?:{_START.pattern}|{_END.pattern})`)(?![^\W_])",
    re.IGNORECASE,
)
"""A mark that a caption quotes, such as a tag in code on a screen. A real mark beside a quotation does not match: there
the quotation mark touches a word."""
_HIDDEN = "\ue000"
"""Private-use character, inserted into quoted marks so that they do not match. No text contains it."""
_ANSWER = re.compile(r"\s*(?:<answer>|<\|begin_of_box\|>)(.*?)(?:</answer>|<\|end_of_box\|>|\Z)\s*", re.DOTALL)
"""Marks of Cosmos-Reason and GLM around an answer."""


class UnknownParser(CaptionAssetsError):
    """A reasoning parser that vLLM does not have, or that does not support the model."""


class Reasoning:
    """Removes reasoning from answers.

    Args:
        tokenizer: the model's tokenizer.
        model_type: selects the parser if none is named.
        parser: name of vLLM's reasoning parser.
        arguments: arguments of the chat template, which parsers take into account.
        generation_prompt: the end of the prompt. Reasoning that it starts continues in the answer.

    Raises:
        UnknownParser: if the named parser cannot be used.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        model_type: str,
        parser: str | None,
        arguments: Mapping[str, Any],
        generation_prompt: str,
    ) -> None:
        self._is_named = parser is not None
        self._special = frozenset(tokenizer.all_special_tokens)
        self._parser = _build_parser(parser or PARSERS.get(model_type), tokenizer, arguments, strict=self._is_named)
        self._starts = _with_mark(_START, getattr(self._parser, "reasoning_start_str", None))
        self._ends = _with_mark(_END, getattr(self._parser, "reasoning_end_str", None))
        opened, closed = _last(self._starts, generation_prompt), _last(self._ends, generation_prompt)
        self.is_open = opened > closed
        """Whether the prompt ends inside reasoning, which the answer continues."""
        self._is_closed = closed > opened

    @property
    def marks_are_special(self) -> bool:
        """Whether the marks are special tokens, which vLLM leaves out of an answer by default."""
        return any(self._starts.fullmatch(token) or self._ends.fullmatch(token) for token in self._special)

    def answer(self, text: str) -> str | None:
        """``text`` without reasoning and special tokens; None if it contains only reasoning."""
        found = self._parsed(_QUOTED.sub(lambda mark: f"{mark[0][:3]}{_HIDDEN}{mark[0][3:]}", text))
        if found is None:
            return None
        end = _end_of_last(self._ends, found)
        found = found[end:]
        if thought := self._starts.search(found):  # reasoning without an end
            found = found[: thought.start()]
            if not found.strip():
                return None
        elif end and not found.strip():
            return None
        if wrapped := _ANSWER.fullmatch(found):
            found = wrapped[1]
        if self.marks_are_special:
            for token in self._special:
                found = found.replace(token, "")
        return found.replace(_HIDDEN, "").strip()

    def _parsed(self, text: str) -> str | None:
        """The answer according to vLLM's parser, where that applies."""
        is_marked = bool(self._starts.search(text) or self._ends.search(text))
        if self._parser is not None and not self._is_closed and (self._is_named or self.is_open or is_marked):
            return _parse(self._parser, text)
        if self.is_open and not self._ends.search(text):
            return None
        return text


def _build_parser(name: str | None, tokenizer: Any, arguments: Mapping[str, Any], *, strict: bool) -> Any:
    """The parser of vLLM; None without a name, or if the model family's parser does not support this tokenizer."""
    if name is None:
        return None
    from vllm.reasoning import ReasoningParserManager

    try:
        return ReasoningParserManager.get_reasoning_parser(name)(tokenizer, chat_template_kwargs=dict(arguments))
    except KeyError:
        known = ", ".join(ReasoningParserManager.list_registered())
        raise UnknownParser(f"CAPTION_REASONING_PARSER is {name!r}: choose one of {known}") from None
    except Exception as error:  # the tokenizer lacks tokens that the parser needs
        if not strict:
            return None
        raise UnknownParser(
            f"CAPTION_REASONING_PARSER is {name!r}, which does not support this model ({error}): choose another or "
            "unset it"
        ) from error


def _parse(parser: Any, text: str) -> str | None:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    content: str | None = parser.extract_reasoning(text, ChatCompletionRequest(messages=[]))[1]
    return content


def _with_mark(pattern: re.Pattern[str], mark: str | None) -> re.Pattern[str]:
    return re.compile(f"{pattern.pattern}|{re.escape(mark.strip())}", re.IGNORECASE) if mark else pattern


def _last(pattern: re.Pattern[str], text: str) -> int:
    """The start of the last match, or -1."""
    return max((found.start() for found in pattern.finditer(text)), default=-1)


def _end_of_last(pattern: re.Pattern[str], text: str) -> int:
    return max((found.end() for found in pattern.finditer(text)), default=0)
