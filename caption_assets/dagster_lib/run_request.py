"""Requests of scheduled runs: tags that name the shards to make, one tag for each shard.

The run's partition range may include other shards. A single tag would grow with the number of shards, and PostgreSQL
cannot index a tag of more than 2,704 bytes (a third of a page), so that the run could not be created.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from itertools import islice

import dagster as dg

NAMESPACE = "caption_assets.request/"
"""Namespace of the tags."""
MAX_LENGTH = 63
"""Maximum length of a tag's name after the namespace; Dagster warns beyond it."""
CHUNK = 500
"""Maximum number of tags in a query."""


def request_tags(asset: dg.AssetKey, inputs: Mapping[str, str], tick: str) -> dict[str, str]:
    """The tags of a scheduled run.

    Args:
        asset: the asset that the run makes, the last one if there are several.
        inputs: the shards to make, with the version of each one's input.
        tick: time of the schedule's tick. A retry of the run has the same time, so that both count as one request.
    """
    return {_tag(shard): f"{_content(asset, version)} {tick}" for shard, version in inputs.items()}


def requested_shards(tags: Mapping[str, str], shards: Iterable[str]) -> list[str] | None:
    """The shards that a run was requested for, among its ``shards``; None if the run is not scheduled."""
    if not any(name.startswith(NAMESPACE) for name in tags):
        return None
    return [shard for shard in shards if _tag(shard) in tags]


def count_requests(instance: dg.DagsterInstance, asset: dg.AssetKey, inputs: Mapping[str, str]) -> Counter[str]:
    """Number of requested runs by shard, for the shards' current inputs. Retries do not count."""
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
