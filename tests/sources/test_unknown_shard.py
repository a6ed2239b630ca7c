import pytest

from caption_assets.sources.unknown_shard import UnknownShard

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("registered", "remedy"),
    [
        (["street-1", "street-2", "park"], "did you mean street-2 or street-1?"),
        (["park"], "1 shard is registered: materialize shard_index to register all in CAPTION_SOURCE"),
        (["park", "lake"], "2 shards are registered: materialize shard_index to register all in CAPTION_SOURCE"),
        ([], "no shard is registered: materialize shard_index to register all in CAPTION_SOURCE"),
    ],
)
def test_unknown_shard_names_similar_ones_or_how_to_register(registered: list[str], remedy: str) -> None:
    assert str(UnknownShard("streed-2", registered)) == f"Unknown shard 'streed-2'; {remedy}"
