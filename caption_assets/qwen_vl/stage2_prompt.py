"""The prompt of stage 2: that of stage 1 with the caption in place of the user's text."""

from __future__ import annotations

import re

PLACEHOLDER = "user_prompt"
"""The part of a prompt that the reference replaces with the text of stage 2."""
_USER_TEXTS = (
    re.compile(r"(?<=<\|vision_end\|>)(?:(?!<\|im_end\|>).)+(?=<\|im_end\|>)", re.DOTALL),
    re.compile(r"(?<=<\|im_start\|>user\n)(?:(?!<\|im_end\|>|<\|vision_start\|>).)+(?=<\|vision_start\|>)", re.DOTALL),
)
"""Patterns of the user's text after the video, and before it."""


def second_prompt(prompt: str, text: str) -> str:
    """``prompt`` with ``text`` in place of ``user_prompt`` or else of the user's text after or before the video.

    Raises:
        ValueError: if there is no such text.
    """
    before, placeholder, after = prompt.rpartition(PLACEHOLDER)
    if placeholder:
        return before + text + after
    for pattern in _USER_TEXTS:
        if found := list(pattern.finditer(prompt)):
            return prompt[: found[-1].start()] + text + prompt[found[-1].end() :]
    raise ValueError(
        f"the prompt contains neither {PLACEHOLDER!r} nor a user's text beside the video: render it with the model's "
        "chat template"
    )
