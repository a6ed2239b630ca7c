import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.captioning.quality import find_flags, similarity, split_words

pytestmark = pytest.mark.fast

ASKED = "Describe what this video shows."
GOOD = (
    "A white van drives along a wet street past parked cars. It slows at a crossing, lets a woman with an umbrella "
    "walk by, then turns left behind a bus."
)


def flags(caption: str, *, finish_reason: str = "stop", neighbour: str | None = None, asked: str = ASKED) -> set[str]:
    return set(find_flags(caption, finish_reason=finish_reason, instruction=asked, neighbour=neighbour))


@pytest.mark.parametrize(
    "caption",
    [
        GOOD,
        "A red circle moves left.",
        "A small red circle moves left on a black background.",
        "I can see a man. He can't open the door.",
        "The camera surely shows the same man as before, sorry for himself.",
    ],
)
def test_a_good_caption_has_no_flag(caption: str) -> None:
    assert flags(caption) == set()


@pytest.mark.parametrize(
    ("caption", "flag"),
    [
        ("", "too_short"),
        ("A red circle.", "too_short"),
        (" ".join(f"word{number}" for number in range(1025)), "too_long"),
        ("the the the the the the the the car goes on and on", "repetition"),
        ("the car turns left and the car turns left and then the car turns left again", "repetition"),
        ("a b a b c a c b a c b a b c a b c c b a", "repetition"),
        ("I'm sorry, but I cannot watch videos.", "refusal"),
        ("I\N{RIGHT SINGLE QUOTATION MARK}m unable to see this video clearly.", "refusal"),
        ("As an AI model I see no pictures.", "refusal"),
        ("Please provide the video you mean.", "refusal"),
        ("Sure! A red circle moves left.", "boilerplate"),
        ("Here is a detailed description of the video: a red circle moves left.", "boilerplate"),
        ("\u4e00\u4e2a\u7ea2\u8272\u7684\u5706\u5411\u5de6\u79fb\u52a8", "wrong_script"),
        (
            "\u041a\u0440\u0430\u0441\u043d\u044b\u0439 \u043a\u0440\u0443\u0433 "
            "\u0434\u0432\u0438\u0436\u0435\u0442\u0441\u044f \u0432\u043b\u0435\u0432\u043e",
            "wrong_script",
        ),
    ],
)
def test_a_bad_caption_is_flagged_by_name(caption: str, flag: str) -> None:
    assert flag in flags(caption)


def test_a_caption_in_the_instructions_own_script_is_right_whatever_it_is() -> None:
    chinese = "\u4e00\u4e2a\u7ea2\u8272\u7684\u5706\u5411\u5de6\u79fb\u52a8"
    assert flags(chinese, asked="\u63cf\u8ff0\u8fd9\u4e2a\u89c6\u9891") == set()
    assert "wrong_script" in flags(GOOD, asked="\u63cf\u8ff0\u8fd9\u4e2a\u89c6\u9891")


def test_a_cut_off_caption_is_flagged() -> None:
    assert flags(GOOD, finish_reason="length") == {"cut_off"}


def test_a_caption_like_the_window_before_is_flagged() -> None:
    assert flags(GOOD, neighbour=GOOD.replace("left", "right")) == {"near_duplicate"}
    assert flags(GOOD, neighbour="A dog sleeps on a red sofa beside a lamp.") == set()


@given(st.text(), st.text())
def test_similarity_is_symmetric_and_full_for_the_same_words(one: str, other: str) -> None:
    words, others = split_words(one), split_words(other)
    assert 0 <= similarity(words, others) == similarity(others, words) <= 1
    assert similarity(words, list(reversed(words))) == 1


@given(st.text(), st.text(), st.sampled_from(["stop", "length"]))
def test_any_text_can_be_looked_at(caption: str, neighbour: str, reason: str) -> None:
    assert ("cut_off" in flags(caption, finish_reason=reason, neighbour=neighbour)) == (reason == "length")
