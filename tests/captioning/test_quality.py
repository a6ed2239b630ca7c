import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.captioning.quality import FLAGS, REGENERATED, find_flags, replaces
from tests.stages import STAGE2

pytestmark = pytest.mark.fast

TEXTS = Path(__file__).parents[2] / "benchmarks" / "texts"
GOOD = (
    "A white van drives along a wet street past parked cars. It slows at a crossing, lets a woman with an umbrella "
    "walk by, then turns left behind a bus."
)


def texts(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (TEXTS / f"{name}.jsonl").read_text().splitlines()]


def flags_of(text: dict[str, Any]) -> set[str]:
    return flags(text["caption"], instruction=text.get("instruction", STAGE2.template), neighbor=text.get("neighbor"))


def flags(
    caption: str, *, finish_reason: str = "stop", neighbor: str | None = None, instruction: str = STAGE2.template
) -> set[str]:
    return set(find_flags(caption, finish_reason=finish_reason, instruction=instruction, neighbor=neighbor))


@pytest.mark.parametrize("text", texts("good"), ids=lambda text: f"{text['kind']}: {text['caption'][:30]}")
def test_good_caption_has_no_flag(text: dict[str, Any]) -> None:
    assert flags_of(text) == set()


@pytest.mark.parametrize("text", texts("bad"), ids=lambda text: f"{text['kind']}: {text['caption'][:30]!r}")
def test_bad_caption_has_the_flag_of_its_kind(text: dict[str, Any]) -> None:
    assert text["kind"] in flags_of(text)


def test_every_flag_of_a_text_has_a_bad_caption() -> None:
    assert {flag.name for flag in FLAGS} - {text["kind"] for text in texts("bad")} == {"cut_off", "too_long"}


def test_caption_of_too_many_words_is_too_long() -> None:
    assert "too_long" in flags(" ".join(f"word{number}" for number in range(1025)))


def test_caption_at_the_output_limit_is_cut_off() -> None:
    assert flags(GOOD, finish_reason="length") == {"cut_off"}


def test_caption_like_that_of_the_previous_window_is_flagged_and_not_regenerated() -> None:
    assert flags(GOOD, neighbor=GOOD.replace("left", "right")) == {"near_duplicate"}
    assert flags(GOOD, neighbor="A dog sleeps on a red sofa beside a lamp.") == set()
    assert "near_duplicate" not in REGENERATED


def test_markup_that_the_prompt_requires_has_no_flag() -> None:
    assert flags('{"subject": "a white van that turns left"}', instruction="Answer in JSON.") == set()


def test_regenerated_caption_replaces_the_first_only_if_it_is_better() -> None:
    assert replaces(GOOD, (), f"Sure! {GOOD}", ("boilerplate",))
    assert not replaces(GOOD, ("boilerplate",), GOOD, ("refusal",))
    assert not replaces(GOOD, ("meta",), GOOD, ("meta",))
    assert not replaces("A van turns left.", (), f"Sure! {GOOD}", ("boilerplate",))
    assert replaces("A van turns left.", (), f"{GOOD} {GOOD}", ("repetition",))


@given(st.text(), st.text(), st.sampled_from(["stop", "length"]))
def test_any_text_is_cut_off_only_by_its_finish_reason(caption: str, neighbor: str, reason: str) -> None:
    assert ("cut_off" in flags(caption, finish_reason=reason, neighbor=neighbor)) == (reason == "length")
