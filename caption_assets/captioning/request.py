"""One question to the model about one window, and its answer."""

from __future__ import annotations

from dataclasses import dataclass

from caption_assets.captioning.recipe import SamplingParams
from caption_assets.captioning.seen_video import SeenVideo
from caption_assets.video.decode import Frames


@dataclass(frozen=True, slots=True)
class Request:
    """A video, a prompt, and how the answer is drawn."""

    video_id: str
    """Names the frames in the engine's caches: the same id must mean the same pixels, another window another id."""
    frames: Frames
    prompt: str
    """Rendered by the model's chat template, with one placeholder for the video."""
    generation: SamplingParams
    stage: int
    """1 or 2. Stage 2 goes first: its video is in the caches."""
    is_cached: bool = False
    """Whether the engine has been given this video before, so that its id may do."""
    replica: int = 0
    """Number of the window, by which the engine's replica is chosen: both stages of a window go to the same one."""


CUT = "length"
"""vLLM's finish reason of an answer that reached the output limit."""


@dataclass(frozen=True, slots=True)
class Completion:
    """The model's answer."""

    text: str
    finish_reason: str
    """``stop`` if the model ended its answer, ``length`` if it was cut off."""
    prompt_tokens: int
    """Tokens of the prompt, the video's included."""
    cached_tokens: int
    """Those of them that came from the prefix cache."""
    output_tokens: int
    seen_video: SeenVideo | None = None
    """The video as the model's own processor passed it on; None if it does so unchanged."""
    cacheable_tokens: int = 0
    """Tokens of the prompt up to the video's end, in whole blocks of the prefix cache; 0 if there is no such cache."""


class RequestFailed(Exception):
    """A request that got no answer, while the engine is well: another try, or a smaller one, may get one."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        """One word for tables."""


POISON = "poison"
"""Kind of a window that kills the engine."""


class PoisonWindow(RequestFailed):
    """A request that crashes the engine each time, also alone, while the engine answers others.

    Args:
        settings: identity of the engine's settings under which it does. Under others it is asked again.
    """

    def __init__(self, settings: str) -> None:
        super().__init__(
            POISON,
            "this window crashed the engine each of three times, while other windows were answered; it is asked again "
            f"only with other engine settings or another vLLM than now ({settings})",
        )


REASONING_CUT_OFF = "reasoning_cut_off"
"""Kind of an answer that was cut off inside a thought."""


class ReasoningCutOff(RequestFailed):
    """An answer that was cut off before its reasoning ended: with more room it may end.

    Args:
        prompt_tokens: tokens of the prompt, the video's included.
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
