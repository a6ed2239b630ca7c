"""The error for a shard that is not registered, with similar names."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches

from caption_assets.errors import CaptionAssetsError


class UnknownShard(CaptionAssetsError):
    """A shard that is not registered.

    Args:
        shard: the unknown name.
        registered: names of the registered shards.
    """

    def __init__(self, shard: str, registered: Collection[str]) -> None:
        near = get_close_matches(shard, registered)
        if near:
            remedy = f"did you mean {' or '.join(near)}?"
        else:
            count = {0: "no shard is", 1: "1 shard is"}.get(len(registered), f"{len(registered)} shards are")
            remedy = f"{count} registered: materialize shard_index to register all in CAPTION_SOURCE"
        super().__init__(f"Unknown shard {shard!r}; {remedy}")
