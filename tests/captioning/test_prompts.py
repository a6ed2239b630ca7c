from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen2TokenizerFast  # AutoTokenizer imports all of PyTorch: 3 s

from caption_assets.captioning.prompts import escape_special_tokens, structural_tokens

pytestmark = pytest.mark.fast

SPECIAL = ("<|im_end|>", "<|im_start|>", "<|video_pad|>", "ab", "bc", " xa", "x  a", "  ", "\n ")
UNBREAKABLE = {"  ", "\n "}
"""Runs of spaces, which are tokens of some tokenizers. They end no turn."""


@given(st.lists(st.sampled_from([*SPECIAL, "<|", "|>", "a", "x", " ", "\n", "\\d"])).map("".join))
def test_escaped_text_has_no_special_token_and_loses_no_character(text: str) -> None:
    escaped = escape_special_tokens(text, SPECIAL)
    assert not any(token in escaped for token in SPECIAL if token not in UNBREAKABLE)
    assert escaped.replace(" ", "") == text.replace(" ", "")


def test_text_without_special_tokens_is_unchanged() -> None:
    assert escape_special_tokens("a < b |> {x} <|im|>", SPECIAL) == "a < b |> {x} <|im|>"
    assert escape_special_tokens("x", ()) == "x"


def test_words_added_to_the_tokenizer_are_not_escaped(model_folder: Path) -> None:
    tokenizer = Qwen2TokenizerFast.from_pretrained(model_folder)
    tokenizer.add_tokens(["pedestrian", "<think>"])
    found = structural_tokens(tokenizer)
    assert {"<|im_end|>", "<think>"} <= found
    assert escape_special_tokens("each pedestrian", found) == "each pedestrian"
