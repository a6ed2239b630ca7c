import pytest

from caption_assets.checks.dataset_checks import few_over_limit

pytestmark = pytest.mark.fast

TOKENS = {"texts": 98, "over_limit": 5, "dropped": 2, "tokens": 4900, "longest": 90, "limit": 77}


def test_few_texts_over_the_limit_are_accepted() -> None:
    found = few_over_limit(TOKENS)
    assert (found.passed, found.message) == (True, "5 of 100 texts have more than 77 tokens")
    assert (found.metadata["fraction"], found.metadata["mean_tokens"], found.metadata["limit"]) == (0.05, 50.0, 77)


def test_many_texts_over_the_limit_are_a_warning_with_the_remedy() -> None:
    found = few_over_limit({**TOKENS, "over_limit": 6})
    assert not found.passed
    assert "6 of 100 texts have more than 77 tokens, up to 90: train on a stage with shorter" in found.message


def test_tokenizer_without_a_limit_passes() -> None:
    without = {name: count for name, count in TOKENS.items() if name != "limit"}
    assert few_over_limit(without).passed


def test_shard_without_texts_passes() -> None:
    assert few_over_limit({**dict.fromkeys(TOKENS, 0), "limit": 77}).passed
