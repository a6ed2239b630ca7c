"""The two prompts of a captioning run, and how a stage-2 prompt takes in the stage-1 caption."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

CAPTION_SLOT = "{caption}"
"""Where the stage-1 caption goes in a stage-2 text. Replaced plainly: a caption may hold braces and backslashes."""

DEFAULT_STAGE1 = (
    "Describe what this video shows: the subjects, how they look and how they move, in the order in which it happens. "
    "Keep to what can be seen."
)
DEFAULT_STAGE2 = (
    "A first description of this video reads:\n\n{caption}\n\nWrite a fuller one. Keep what it says and add what it "
    "leaves out: sizes, colours, the setting and background, light and camera. Answer with the description alone."
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A named pair of instructions, one for each stage.

    Raises:
        ValueError: if the stage-2 text does not hold the slot for the stage-1 caption exactly once.
    """

    name: str
    stage1: str
    stage2: str

    def __post_init__(self) -> None:
        if not self.stage1.strip():
            raise ValueError(f"the stage-1 text of prompt {self.name!r} is empty: give it an instruction")
        if (found := self.stage2.count(CAPTION_SLOT)) != 1:
            raise ValueError(
                f"the stage-2 text of prompt {self.name!r} holds {CAPTION_SLOT} {found} times: write it exactly once, "
                "where the stage-1 caption belongs"
            )

    def stage2_text(self, caption: str) -> str:
        """The stage-2 instruction with the stage-1 ``caption`` in its place."""
        before, after = self.stage2.split(CAPTION_SLOT)
        return before + caption + after


DEFAULT_PROMPT = Prompt(name="default", stage1=DEFAULT_STAGE1, stage2=DEFAULT_STAGE2)


def text_hash(text: str) -> str:
    """The first 16 hex digits of the text's SHA-256: tells two prompts apart in tables and code versions."""
    return sha256(text.encode()).hexdigest()[:16]
