"""Prompts: the instructions of both stages, with a slot for the stage-1 caption in the second."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

CAPTION_SLOT = "{caption}"
"""Slot for the stage-1 caption in a stage-2 text. The caption replaces it literally, with braces and backslashes."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A named pair of instructions, one for each stage.

    Raises:
        ValueError: if the stage-1 text is empty, or the stage-2 text does not contain ``CAPTION_SLOT`` once.
    """

    name: str
    stage1: str
    stage2: str

    def __post_init__(self) -> None:
        if not self.stage1.strip():
            raise ValueError(f"the stage-1 text of prompt {self.name!r} is empty: give it an instruction")
        if (found := self.stage2.count(CAPTION_SLOT)) != 1:
            raise ValueError(
                f"the stage-2 text of prompt {self.name!r} contains {CAPTION_SLOT} {found} times: write it exactly "
                "once, where the stage-1 caption belongs"
            )

    def stage2_text(self, caption: str) -> str:
        """The stage-2 instruction with the stage-1 caption in its slot."""
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
"""The prompt that the bundled sample model was trained on. With any other prompt its captions are arbitrary."""
PROMPTS = {prompt.name: prompt for prompt in (GENERAL, DRIVING, SURVEILLANCE, SAMPLE)}
"""The built-in prompts, by name."""


def structural_tokens(tokenizer: Any) -> frozenset[str]:
    """Tokens of a Hugging Face tokenizer that have a structural meaning anywhere in a prompt.

    These are its special tokens and added tokens in angle brackets, such as Qwen3's ``<think>``. Plain words that a
    fine-tune has added are not structural.
    """
    added = tokenizer.added_tokens_decoder.values()
    return frozenset(token.content for token in added if token.special or token.content.startswith("<"))


def escape_special_tokens(text: str, special: Collection[str]) -> str:
    """``text`` with a space inside every special token, so that the tokenizer reads it as plain text.

    A caption or a custom prompt may contain tokens such as ``<|im_end|>``, which would end the turn or start another.
    """
    # A single character cannot be split. It does not have to be: no such token ends a turn.
    breakable = sorted((token for token in special if len(token.strip()) > 1), key=len, reverse=True)
    if not breakable:
        return text
    pattern = re.compile("|".join(map(re.escape, breakable)))
    while pattern.search(text):  # repeated because tokens may overlap
        text = pattern.sub(lambda token: _split(token.group()), text)
    return text


def _split(token: str) -> str:
    """The token with a space after its first character that is not a space."""
    first = len(token) - len(token.lstrip()) + 1
    return f"{token[:first]} {token[first:]}"


def text_hash(text: str) -> str:
    """The first 16 hex digits of the text's SHA-256, which identify a prompt in tables and code versions."""
    return sha256(text.encode()).hexdigest()[:16]
