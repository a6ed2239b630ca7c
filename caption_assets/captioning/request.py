"""The request to the engine for one window and stage, and its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from caption_assets.captioning.output import TEXT, Output
from caption_assets.captioning.sampling import SamplingParams
from caption_assets.captioning.seen_video import SeenVideo
from caption_assets.video.decode import Frames


@dataclass(frozen=True, slots=True)
class Request:
    """A video, a prompt, the sampling parameters and the form of the answer."""

    video_id: str
    """Key of the frames in the engine's caches: equal ids must mean equal pixels."""
    frames: Frames | None
    """None for a request without video."""
    prompt: str
    """Text rendered with the model's chat template, with one placeholder for the video if there is one."""
    generation: SamplingParams
    stage: int
    """Number of the stage, from 1. Later stages have priority: their videos are in the caches."""
    output: Output = TEXT
    is_cached: bool = False
    """Whether the engine has received this video before, so that its id may suffice."""
    replica: int = 0
    """Number of the window. It selects the engine's replica: all stages of a window go to the same one."""
    on_prefilled: Callable[[], None] = lambda: None
    """Called when the engine has computed the prompt, whose video is then in its caches."""


FINISH_LENGTH = "length"
"""vLLM's finish reason for an answer that reached the output limit."""


@dataclass(frozen=True, slots=True)
class Completion:
    """The model's answer."""

    text: str
    finish_reason: str
    """``stop`` for a complete answer, ``length`` for one that was cut off."""
    prompt_tokens: int
    """Tokens of the prompt, including the video."""
    cached_tokens: int
    """Tokens of the prompt that came from the prefix cache."""
    output_tokens: int
    seen_video: SeenVideo | None = None
    """The video after the model's processor; None if the processor does not change it."""
    cacheable_tokens: int = 0
    """Tokens of the prompt up to the video's end, in whole blocks of the prefix cache; 0 without such a cache."""
    probabilities: Mapping[str, float] | None = None
    """Probability of each choice, if the output is a choice."""


class RequestFailed(Exception):
    """A request without an answer from a working engine. A retry or a smaller video may succeed."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        """Error kind in tables."""


POISON = "poison"
"""Error kind of a window that crashes the engine."""


class PoisonWindow(RequestFailed):
    """A window that repeatedly crashes the engine, also alone, while the engine answers other windows.

    Args:
        settings: identity of the engine's settings. With other settings the window is retried.
    """

    def __init__(self, settings: str) -> None:
        super().__init__(
            POISON,
            "this window crashed the engine three times, while other windows were answered; it is retried only with "
            f"other engine settings or another version of vLLM than the current ones ({settings})",
        )


class AnswerCutOff(RequestFailed):
    """An answer that is useless because it was cut off. A higher output limit may suffice.

    Args:
        kind: error kind in tables.
        message: the error's message.
        prompt_tokens: tokens of the prompt, including the video.
        output_tokens: tokens of the answer.
    """

    def __init__(self, kind: str, message: str, prompt_tokens: int, output_tokens: int) -> None:
        super().__init__(kind, message)
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens


REASONING_CUT_OFF = "reasoning_cut_off"
"""Error kind of an answer that was cut off while the model was still reasoning."""
JSON_CUT_OFF = "json_cut_off"
"""Error kind of JSON that was cut off."""
INVALID_JSON = "invalid_json"
"""Error kind of an answer that is no JSON."""


class ReasoningCutOff(AnswerCutOff):
    """An answer that was cut off before its reasoning ended."""

    def __init__(self, prompt_tokens: int, output_tokens: int) -> None:
        super().__init__(
            REASONING_CUT_OFF,
            f"the model was still reasoning after {output_tokens} tokens: raise CAPTION_MAX_OUTPUT_TOKENS, or switch "
            "reasoning off with CAPTION_CHAT_TEMPLATE_KWARGS",
            prompt_tokens,
            output_tokens,
        )


class JsonCutOff(AnswerCutOff):
    """JSON that was cut off."""

    def __init__(self, prompt_tokens: int, output_tokens: int) -> None:
        super().__init__(
            JSON_CUT_OFF,
            f"the JSON was not complete after {output_tokens} tokens: raise the stage's max_output_tokens, or limit "
            "its lists with maxItems and its strings with maxLength",
            prompt_tokens,
            output_tokens,
        )
