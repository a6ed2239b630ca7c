"""The request of a scheduled run: tags that name the shards to make, one tag for each shard.

The run's partition range may span further shards. One tag for all shards would grow with their number, and PostgreSQL
cannot index a tag of more than 2,704 bytes (a third of a page), so that the run could not be created.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from itertools import islice

import dagster as dg

NAMESPACE = "caption_assets.request/"
"""Of the tags' names."""
MAX_LENGTH = 63
"""Characters of a tag's name after its namespace: Dagster's limit, beyond which it warns."""
CHUNK = 500
"""Tags that one query looks up."""


def request_tags(asset: dg.AssetKey, inputs: Mapping[str, str], tick: str) -> dict[str, str]:
    """The tags of a run that the schedule requests.

    Args:
        asset: what the run makes, its last asset if there are several.
        inputs: the shards to make, with the version of the input of each.
        tick: time of the schedule's tick. A retry of the run has the same, so that both count as one request.
    """
    return {_tag(shard): f"{_content(asset, version)} {tick}" for shard, version in inputs.items()}


def requested_shards(tags: Mapping[str, str], shards: Iterable[str]) -> list[str] | None:
    """Those of a run's shards that it was requested for; None if the run is not one of the schedule's."""
    if not any(name.startswith(NAMESPACE) for name in tags):
        return None
    return [shard for shard in shards if _tag(shard) in tags]


def count_requests(instance: dg.DagsterInstance, asset: dg.AssetKey, inputs: Mapping[str, str]) -> Counter[str]:
    """The number of runs requested for each shard with its present input; retries do not count."""
    found: Counter[str] = Counter()
    for chunk in _chunks(inputs):
        shards = {_tag(shard): shard for shard in chunk}
        for name, values in instance.get_run_tags(tag_keys=list(shards)):
            shard = shards[name]
            content = _content(asset, inputs[shard])
            found[shard] = sum(value.rpartition(" ")[0] == content for value in values)
    return found


def _tag(shard: str) -> str:
    return NAMESPACE + _short(shard)


def _content(asset: dg.AssetKey, version: str) -> str:
    return f"{asset.to_user_string()} {_short(version)}"


def _short(text: str) -> str:
    return text if len(text) <= MAX_LENGTH else sha256(text.encode()).hexdigest()[:32]


def _chunks(shards: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(shards)
    while chunk := list(islice(remaining, CHUNK)):
        yield chunk
