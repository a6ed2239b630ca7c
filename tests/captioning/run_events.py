"""An observer that keeps the events of a run over shards."""

from __future__ import annotations

from collections.abc import Mapping

from caption_assets.captioning.open_shard import Published, PublishedTable
from caption_assets.captioning.shard_queue import RunObserver
from caption_assets.errors import CaptionAssetsError


class RunEvents(RunObserver):
    """Keeps the events of a run."""

    def __init__(self) -> None:
        self.tables: dict[str, Mapping[str, PublishedTable]] = {}
        self.seconds: dict[str, Mapping[str, float]] = {}
        self.skips: dict[str, str] = {}
        self.failures: dict[str, str] = {}
        self.warnings: list[str] = []

    def published(self, shard: str, published: Published) -> None:
        self.tables[shard] = published.tables
        self.seconds[shard] = published.seconds

    def skipped(self, shard: str, reason: str) -> None:
        self.skips[shard] = reason

    def failed(self, shard: str, error: CaptionAssetsError) -> None:
        self.failures[shard] = str(error)

    def warned(self, message: str) -> None:
        self.warnings.append(message)
