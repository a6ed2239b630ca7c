"""One question to the model about one window, and its answer."""

from __future__ import annotations

from dataclasses import dataclass

from caption_assets.clips.decode import Frames


@dataclass(frozen=True, slots=True)
class Request:
    """A video and an instruction."""

    video_id: str
    """Names the frames in the engine's caches: the same id must mean the same pixels, another window another id."""
    frames: Frames
    instruction: str


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
