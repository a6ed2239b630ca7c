import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.captioning.prompts import CAPTION_SLOT, DEFAULT_PROMPT, Prompt

pytestmark = pytest.mark.fast


@given(st.text())
def test_any_caption_passes_into_stage_2_unchanged(caption: str) -> None:
    before, after = DEFAULT_PROMPT.stage2.split(CAPTION_SLOT)
    assert DEFAULT_PROMPT.stage2_text(caption) == before + caption + after


@pytest.mark.parametrize("caption", [r"\d \g<1> \1", "{caption} {0} {", '"quoted"', "100 % {caption}"])
def test_captions_that_look_like_patterns_are_plain_text(caption: str) -> None:
    assert Prompt("p", "one", "<{caption}>").stage2_text(caption) == f"<{caption}>"


@pytest.mark.parametrize("stage2", ["no slot", "{caption} {caption}"])
def test_stage_2_needs_its_slot_exactly_once(stage2: str) -> None:
    with pytest.raises(ValueError, match="exactly once"):
        Prompt("p", "one", stage2)


def test_an_empty_stage_1_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        Prompt("p", " ", "{caption}")
