"""The two prompts of a captioning run, and how a stage-2 prompt takes in the stage-1 caption."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

CAPTION_SLOT = "{caption}"
"""The place of the stage-1 caption in a stage-2 text. Replaced as plain text: captions hold braces and backslashes."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A named pair of instructions, one for each stage.

    Raises:
        ValueError: if the stage-1 text is empty, or the stage-2 text does not hold the slot for the stage-1 caption
            exactly once.
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


GENERAL = Prompt(
    name="general",
    stage1=(
        "Describe what this video shows: the subjects, how they look and how they move, in the order in which it "
        "happens. Keep to what can be seen."
    ),
    stage2=(
        "A first description of this video reads:\n\n{caption}\n\nWrite a fuller one. Keep what it says and add what "
        "it leaves out: sizes, colours, the setting and background, light and camera. Answer with the description "
        "alone."
    ),
)
DRIVING = Prompt(
    name="driving",
    stage1=(
        "This video was filmed from a moving vehicle. Describe the drive in the order in which it happens: what the "
        "vehicle itself does (keeps its lane, turns, slows, stops), the road and its lanes, and each other road user "
        "with its position and motion relative to the vehicle. Name traffic lights and signs with their state where "
        "they can be read. Do not guess at what cannot be seen."
    ),
    stage2=(
        "A first description of this drive reads:\n\n{caption}\n\nWrite a fuller one for training a driving model. "
        "Keep what it says and add what it leaves out: weather, light and road surface, the kind of road and the lane, "
        "distances and right of way, pedestrians and cyclists, and whatever makes the driver react, with its cause. "
        "Answer with the description alone."
    ),
)
SURVEILLANCE = Prompt(
    name="surveillance",
    stage1=(
        "This video comes from a camera that does not move. Describe what changes in the scene, in the order in which "
        "it happens: who or what enters, where it goes, what it does with what, and where it leaves. Tell people apart "
        "by their clothing, vehicles by kind and colour. If nothing happens, say so."
    ),
    stage2=(
        "A first description of this recording reads:\n\n{caption}\n\nWrite a fuller one. Keep what it says and add "
        "what it leaves out: the place and its fixed parts, the time of day, how many people and vehicles there are, "
        "their positions in the picture, and how they deal with one another. Do not suppose intentions. Answer with "
        "the description alone."
    ),
)
SAMPLE = Prompt(
    name="sample",
    stage1=(
        "Describe what this video shows: the subjects, how they look and how they move, in the order in which it "
        "happens. Keep to what can be seen."
    ),
    stage2=(
        "A first description of this video reads:\n\n{caption}\n\nWrite a fuller one. Keep what it says and add what "
        "it leaves out: sizes, colours, the setting and background, light and camera. Answer with the description "
        "alone."
    ),
)
"""The words that the bundled sample model was trained on. For any other prompt it may answer anything."""
PROMPTS = {prompt.name: prompt for prompt in (GENERAL, DRIVING, SURVEILLANCE, SAMPLE)}
"""The prompts that come with the project, by name."""


def structural_tokens(tokenizer: Any) -> frozenset[str]:
    """Tokens of a Hugging Face tokenizer that structure a prompt wherever they stand in a text.

    Those are its special tokens and what it has added in angle brackets, as Qwen3's ``<think>``. A plain word that a
    fine-tune has added is none.
    """
    added = tokenizer.added_tokens_decoder.values()
    return frozenset(token.content for token in added if token.special or token.content.startswith("<"))


def escape_special_tokens(text: str, special: Collection[str]) -> str:
    """``text`` with every special token of the tokenizer broken up by a space, so that it is read as mere text.

    A caption or a custom text may hold ``<|im_end|>`` and the like, which would end the turn or open another.
    """
    # One that is a single character between spaces cannot be broken up, nor need it be: it ends no turn.
    breakable = sorted((token for token in special if len(token.strip()) > 1), key=len, reverse=True)
    if not breakable:
        return text
    pattern = re.compile("|".join(map(re.escape, breakable)))
    while pattern.search(text):  # again, since tokens may overlap in the text
        text = pattern.sub(lambda token: _broken(token.group()), text)
    return text


def _broken(token: str) -> str:
    """A token with a space after its first character that is none."""
    first = len(token) - len(token.lstrip()) + 1
    return f"{token[:first]} {token[first:]}"


def text_hash(text: str) -> str:
    """The first 16 hex digits of the text's SHA-256: tells two prompts apart in tables and code versions."""
    return sha256(text.encode()).hexdigest()[:16]
