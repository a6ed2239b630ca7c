from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from caption_assets.captioning.reasoning import Reasoning

CLOSED = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
OPEN = "<|im_start|>assistant\n<think>\n"
PLAIN = "<|im_start|>assistant\n"
CAPTION = "A dog crosses the road."


def reasoning(turn: str = PLAIN, *, special: tuple[str, ...] = ()) -> Reasoning:
    tokenizer = SimpleNamespace(all_special_tokens=["<|im_end|>", *special])
    return Reasoning(tokenizer, model_type="", parser=None, arguments={}, generation_prompt=turn)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("turn", "text"),
    [
        (PLAIN, CAPTION),
        (CLOSED, CAPTION),
        (PLAIN, f"<think>The user wants a caption.</think>\n\n{CAPTION}"),
        (PLAIN, f"The user wants a caption.</think>{CAPTION}"),
        (OPEN, f"The user wants a caption.\n</think>\n{CAPTION}"),
        (CLOSED, f"Let me see.</think>{CAPTION}"),
        (OPEN, f"<think>Again.</think> So.</think>{CAPTION}"),
        (PLAIN, f"◁think▷Hm.◁/think▷{CAPTION}"),
        (PLAIN, f"<seed:think>Hm.</seed:think>{CAPTION}"),
        (PLAIN, f"<|START_THINKING|>Hm.<|END_THINKING|>{CAPTION}"),
        ("<|assistant|></think>", CAPTION),
        (PLAIN, f"<thinking>Hm.</thinking>{CAPTION}"),
        (PLAIN, f"<THINK>Hm.</THINK>{CAPTION}"),
        (PLAIN, f"<think>Hm.</think><answer>{CAPTION}</answer>"),
        (PLAIN, f"<answer>{CAPTION}"),
        (PLAIN, f"<think>Hm.</think><|begin_of_box|>{CAPTION}<|end_of_box|>"),
        (PLAIN, f"{CAPTION} <think>Is there more?"),
    ],
)
def test_caption_is_the_text_outside_of_reasoning(turn: str, text: str) -> None:
    assert reasoning(turn).answer(text) == CAPTION


@pytest.mark.fast
@pytest.mark.parametrize(
    ("turn", "text"),
    [(OPEN, "The user wants a caption. The dog"), (PLAIN, "<think>The dog"), (PLAIN, "<think>The dog.</think>\n")],
)
def test_answer_of_only_reasoning_is_none(turn: str, text: str) -> None:
    assert reasoning(turn).answer(text) is None


@pytest.mark.fast
@pytest.mark.parametrize(
    "caption",
    [
        'A laptop shows the tag "<think>" in an editor. A man types.',
        "The code reads `</think>` on line 3, and a hand scrolls.",
        "A slide titled \u201c<analysis>\u201d appears (`[THINK]` below it).",
        "`<think>` stands on the screen.",
    ],
)
def test_quoted_mark_belongs_to_the_caption(caption: str) -> None:
    assert reasoning().answer(caption) == caption
    assert reasoning().answer(f"<think>The tag is </think> {caption}") == caption


@pytest.mark.fast
def test_mark_between_two_quotations_ends_the_reasoning() -> None:
    assert reasoning().answer('<think>Perhaps "a dog"</think>"A dog runs."') == '"A dog runs."'
    assert reasoning(OPEN).answer("It is 'a dog'</think>'A dog runs.'") == "'A dog runs.'"


@pytest.mark.fast
def test_empty_answer_is_not_reasoning() -> None:
    assert reasoning(PLAIN).answer(" \n") == ""


@pytest.mark.fast
def test_marks_may_be_special_tokens_and_other_special_tokens_are_removed() -> None:
    special = reasoning(special=("<think>", "</think>"))
    assert special.marks_are_special
    assert special.answer(f"<think>Hm.</think>{CAPTION}<|im_end|>") == CAPTION
    assert not reasoning().marks_are_special


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A tokenizer with the reasoning marks of Qwen3 and GLM."""
    from caption_assets.sample.tokenizer import build_tokenizer

    found = build_tokenizer()
    found.add_tokens(["<think>", "</think>", "<tool_call>", "</tool_call>"])
    return found


@pytest.mark.engine
@pytest.mark.parametrize("model_type", ["qwen3_5", "qwen3_vl", "glm4v", "glm4v_moe"])
@pytest.mark.parametrize("turn", [PLAIN, CLOSED, OPEN])
def test_parser_of_the_family_removes_reasoning(tokenizer: Any, model_type: str, turn: str) -> None:
    found = Reasoning(tokenizer, model_type=model_type, parser=None, arguments={}, generation_prompt=turn)
    assert found.answer(f"The user wants a caption.</think>\n\n{CAPTION}") == CAPTION
    assert found.answer(f"<think>The user wants a caption.</think>\n\n{CAPTION}") == CAPTION
    assert found.answer(CAPTION) == (None if turn == OPEN else CAPTION)
    assert found.answer("<think>The user wants") is None


@pytest.mark.engine
@pytest.mark.parametrize("parser", ["qwen3", "deepseek_r1", "glm45"])
def test_answer_without_marks_is_reasoning_for_a_named_parser(tokenizer: Any, parser: str) -> None:
    found = Reasoning(tokenizer, model_type="", parser=parser, arguments={}, generation_prompt=PLAIN)
    assert found.answer("The user wants a cap") is None
    assert found.answer(f"The user wants a caption.</think>{CAPTION}") == CAPTION
