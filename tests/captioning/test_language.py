import pytest

from caption_assets.captioning.language import expected, is_mixed_script, is_wrong_language, is_wrong_script
from caption_assets.captioning.text import split_words

pytestmark = pytest.mark.fast

ENGLISH = "Describe what this video shows: the subjects, how they look and how they move, in the order of events."
HAN = "一个红色的圆向左移动"


@pytest.mark.parametrize(
    ("instruction", "language"),
    [
        (ENGLISH, "english"),
        (f"{ENGLISH} Answer in Japanese.", "japanese"),
        ("Write a German caption of the video.", "german"),
        ("请用英文以外的语言：中文", "chinese"),
        ("请描述这个视频", "chinese"),
        ("映像を説明してください", "japanese"),
        ("Опишите видео по-русски", "russian"),
    ],
)
def test_expected_language_is_the_one_that_the_prompt_names_or_is_written_in(instruction: str, language: str) -> None:
    found = expected(instruction).language
    assert found is not None
    assert found.name == language


def test_han_is_expected_of_chinese_and_japanese_only() -> None:
    assert not is_wrong_script(HAN, expected("请描述这个视频"))
    assert is_wrong_script(HAN, expected("映像を説明してください"))
    assert is_wrong_script(HAN, expected("영상을 설명해 주세요"))
    assert is_wrong_script(HAN, expected(ENGLISH))


def test_quoted_foreign_word_is_not_mixed_script() -> None:
    english = expected(ENGLISH)
    assert is_mixed_script("A sign reads 出口 above the door.", english)
    assert not is_mixed_script('A sign reads "出口" above the door.', english)
    assert not is_mixed_script("A man in a T恤 walks.", expected("请描述这个视频"))


def test_caption_in_another_language_of_the_same_script_is_detected() -> None:
    german = split_words("Ein Mann geht mit dem Hund über die Straße und bleibt an der Ampel stehen, die auf Rot ist.")
    assert is_wrong_language(german, expected(ENGLISH))
    assert not is_wrong_language(german, expected(f"{ENGLISH} Answer in German."))
