"""A harness for runs over shards: a root with small clips, and runs with a fake engine."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from caption_assets.captioning.caption_run import CaptionRun
from caption_assets.captioning.prefix_cache import CacheHits
from caption_assets.captioning.request import Request
from caption_assets.captioning.shard_queue import caption_shards
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.sources.manifest import probe_clips
from caption_assets.sources.shard import find_shard
from caption_assets.store.checkpoints import checkpoint_folder
from caption_assets.store.root import Root
from caption_assets.store.table_file import read_file_metadata
from caption_assets.store.tables import publish_manifest, read_captions, table_path
from caption_assets.video.window import Windowing
from tests.captioning.fake_engine import FakeEngine, start_fake_engine
from tests.captioning.run_events import RunEvents
from tests.conftest import SANDBOX
from tests.stages import STAGE1, STAGE2, two_stages
from tests.videos import moving_video

TABLES = (STAGE1.name, STAGE2.name)
VARYING_COLUMNS = {"prompt_tokens", "cached_tokens", "output_tokens", "attempts"}
"""Columns that may differ between runs."""


class Harness:
    """A root with shards of small clips, and runs over them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = Root.open(str(folder / "root"))
        self.source = Root.open(str(folder / "shards"))
        self.requests: Counter[int] = Counter()
        """Number of requests of the last run, by stage."""
        self.engines = 0
        """Number of engines that the last run started."""
        self.sandbox = SANDBOX

    def add_clips(self, shard: str, *names: str) -> None:
        """Add clips to a shard and probe it; each name gives another picture."""
        folder = self.folder / "shards" / shard
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            side = 64 + 2 * (sum(name.encode()) % 30)
            (folder / f"{name}.mp4").write_bytes(moving_video(48, size=(side, 64), options={"preset": "ultrafast"}))
        self.probe(shard)

    def probe(self, shard: str) -> None:
        """Publish the shard's manifest, with two windows for each clip."""
        clips = probe_clips(SANDBOX, self.source, find_shard(self.source, shard), Windowing(24, 12))
        publish_manifest(self.root, shard, (row for clip in clips for row in clip.rows), {})

    def caption_run(self, **settings: Any) -> CaptionRun:
        return CaptionRun(self.root, self.source, **{"recipe": two_stages(), **settings})

    def run(self, *shards: str, engine: FakeEngine | None = None, **settings: Any) -> RunEvents:
        """Caption shards, by default ``a``; settings are fields of ``CaptionRun``."""
        return asyncio.run(self.caption(*shards, engine=engine, **settings))

    async def caption(self, *shards: str, engine: FakeEngine | None = None, **settings: Any) -> RunEvents:
        """The coroutine of ``run``."""
        events, self.engines = RunEvents(), 0
        self.requests.clear()
        fake = engine or FakeEngine(self.count)
        run = self.caption_run(**settings)
        supervisor = EngineSupervisor(lambda: start_fake_engine(fake, self.count_engine), settings=run.engine_settings)
        await caption_shards(supervisor, self.sandbox, run, shards or ["a"], [events])
        return events

    def count(self, request: Request) -> None:
        self.requests[request.stage] += 1

    def count_engine(self) -> None:
        self.engines += 1

    def rows(self, table: str, shard: str = "a") -> list[dict[str, Any]]:
        """The rows of a published table, without ``VARYING_COLUMNS``."""
        found = [asdict(row) for row in read_captions(self.root, table, shard)]
        return [{name: value for name, value in row.items() if name not in VARYING_COLUMNS} for row in found]

    def stored_hits(self, table: str) -> CacheHits:
        """Prefix cache hits in the file metadata of a published table."""
        return CacheHits.from_file_metadata(read_file_metadata(pq.ParquetFile(self.root.full(table_path(table, "a")))))

    def checkpoint_files(self, shard: str = "a") -> list[str]:
        """Names in the shard's checkpoint folder, without leases."""
        return [name for name in self.root.names(checkpoint_folder(shard)) if not name.startswith("lease-")]
