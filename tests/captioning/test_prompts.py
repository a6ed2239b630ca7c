from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen2TokenizerFast  # AutoTokenizer imports all of PyTorch: 3 s

from caption_assets.captioning.prompts import (
    CAPTION_SLOT,
    GENERAL,
    PROMPTS,
    SAMPLE,
    Prompt,
    escape_special_tokens,
    structural_tokens,
    text_hash,
)

pytestmark = pytest.mark.fast


@given(st.text())
def test_stage_2_prompt_contains_the_caption_unchanged(caption: str) -> None:
    before, after = GENERAL.stage2.split(CAPTION_SLOT)
    assert GENERAL.stage2_text(caption) == before + caption + after


@pytest.mark.parametrize("caption", [r"\d \g<1> \1", "{caption} {0} {", '"quoted"', "100 % {caption}"])
def test_patterns_in_captions_are_plain_text(caption: str) -> None:
    assert Prompt("p", "one", "<{caption}>").stage2_text(caption) == f"<{caption}>"


@pytest.mark.parametrize("stage2", ["no slot", "{caption} {caption}"])
def test_stage_2_prompt_without_exactly_one_slot_is_refused(stage2: str) -> None:
    with pytest.raises(ValueError, match="exactly once"):
        Prompt("p", "one", stage2)


def test_empty_stage_1_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        Prompt("p", " ", "{caption}")


def test_prompts_cover_each_kind_of_camera_and_the_sample() -> None:
    assert list(PROMPTS) == ["general", "driving", "surveillance", "sample"]
    texts = [text for name, prompt in PROMPTS.items() if name != "sample" for text in (prompt.stage1, prompt.stage2)]
    assert len(set(texts)) == 6


def test_sample_prompt_keeps_the_words_that_the_sample_model_was_trained_on() -> None:
    assert (text_hash(SAMPLE.stage1), text_hash(SAMPLE.stage2)) == ("5246b14402743d7e", "6208b526ef0432db")


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
