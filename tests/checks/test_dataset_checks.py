import pytest

from caption_assets.checks.dataset_checks import few_equal, few_over_limit

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


def test_text_of_few_windows_passes() -> None:
    found = few_equal("A car.", windows=100, shards=90, total=5_000, kept=None)
    assert (found.passed, found.message) == (True, "100 of 5000 windows, in 90 shards, have the same text")
    assert few_equal("A car.", windows=1_000, shards=90, total=10_000_000, kept=None).passed


def test_text_that_is_spread_over_many_shards_is_a_warning_with_the_text() -> None:
    found = few_equal("A person walks.", windows=4_000, shards=3_900, total=1_000_000, kept=None)
    assert not found.passed
    assert "4000 of 1000000 windows, in 3900 shards, have the same text, more than 100: check" in found.message
    assert (found.metadata["example"], found.metadata["shards"]) == ("A person walks.", 3_900)


def test_limited_text_passes() -> None:
    found = few_equal("A person walks.", windows=4_000, shards=3_900, total=1_000_000, kept=100)
    assert (found.passed, found.message.endswith("about 100 of them are kept")) == (True, True)
