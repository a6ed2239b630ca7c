"""The request to the engine for one window and stage, and its answer."""

from __future__ import annotations

from dataclasses import dataclass

from caption_assets.captioning.recipe import SamplingParams
from caption_assets.captioning.seen_video import SeenVideo
from caption_assets.video.decode import Frames


@dataclass(frozen=True, slots=True)
class Request:
    """A video, a prompt and the sampling parameters."""

    video_id: str
    """Key of the frames in the engine's caches: equal ids must mean equal pixels."""
    frames: Frames
    prompt: str
    """Text rendered with the model's chat template, with one placeholder for the video."""
    generation: SamplingParams
    stage: int
    """Number of the stage. Later stages have priority: their videos are in the caches."""
    is_cached: bool = False
    """Whether the engine has received this video before, so that its id may suffice."""
    replica: int = 0
    """Number of the window. It selects the engine's replica: all stages of a window go to the same one."""


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


REASONING_CUT_OFF = "reasoning_cut_off"
"""Error kind of an answer that was cut off while the model was still reasoning."""


class ReasoningCutOff(RequestFailed):
    """An answer that was cut off before its reasoning ended. A higher output limit may suffice.

    Args:
        prompt_tokens: tokens of the prompt, including the video.
        output_tokens: tokens of the reasoning.
    """

    def __init__(self, prompt_tokens: int, output_tokens: int) -> None:
        super().__init__(
            REASONING_CUT_OFF,
            f"the model was still reasoning after {output_tokens} tokens: raise CAPTION_MAX_OUTPUT_TOKENS, or switch "
            "reasoning off with CAPTION_CHAT_TEMPLATE_KWARGS",
        )
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
