import pytest

from caption_assets.models.variants import QWEN25, UnknownModel, variant

pytestmark = pytest.mark.fast


def test_the_references_key_names_qwen25() -> None:
    assert variant("qwen") is variant("qwen2.5") is QWEN25


def test_an_unknown_key_names_the_known_ones() -> None:
    with pytest.raises(UnknownModel, match=r"'gpt'.*qwen, qwen2\.5, sample"):
        variant("gpt")


def test_revisions_lie_side_by_side() -> None:
    assert QWEN25.folder == f"Qwen--Qwen2.5-VL-7B-Instruct/{QWEN25.revision}"
