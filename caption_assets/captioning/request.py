"""One question to the model about one window, and its answer."""

from __future__ import annotations

from dataclasses import dataclass

from caption_assets.captioning.recipe import Generation
from caption_assets.clips.decode import Frames


@dataclass(frozen=True, slots=True)
class Request:
    """A video, a prompt, and how the answer is drawn."""

    video_id: str
    """Names the frames in the engine's caches: the same id must mean the same pixels, another window another id."""
    frames: Frames
    prompt: str
    """Rendered by the model's chat template, with one placeholder for the video."""
    generation: Generation
    stage: int
    """1 or 2. Stage 2 goes first: its video is in the caches."""
    seen: bool = False
    """Whether the engine has been given this video before, so that its id may do."""
    replica: int = 0
    """Number of the window, by which the engine's replica is chosen: both stages of a window go to the same one."""


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


class RequestFailed(Exception):
    """A request that got no answer, while the engine is well: another try, or a smaller one, may get one."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        """One word for tables."""


POISON = "poison"
"""Kind of a window that kills the engine."""


class PoisonWindow(RequestFailed):
    """A request of which the engine dies each time, also when it is alone: it is not tried again."""

    def __init__(self) -> None:
        super().__init__(POISON, "the engine dies of this window each time it is asked about it")
