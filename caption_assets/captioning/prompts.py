"""Prompts: special tokens in them, and their hash."""

from __future__ import annotations

import re
from collections.abc import Collection
from hashlib import sha256
from typing import Any


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
