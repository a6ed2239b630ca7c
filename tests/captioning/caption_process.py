"""A process that captions a shard, for tests that kill it. Its arguments are root, source, shard, request log, engine.

Each request is appended to the request log as a line of stage and window id. The engine is the folder of a model for
vLLM, or ``fake``.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TextIO

from caption_assets.captioning.caption_run import CaptionRun
from caption_assets.captioning.engine import EngineConfig, start_engine
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.request import Completion, Request
from caption_assets.captioning.sampling import DETERMINISTIC
from caption_assets.captioning.shard_queue import caption_shards
from caption_assets.captioning.supervisor import EngineSupervisor, StartEngine
from caption_assets.store.root import Root
from caption_assets.workers.sandbox import Sandbox
from tests.captioning.fake_engine import FakeEngine, start_fake_engine
from tests.captioning.run_events import RunEvents
from tests.stages import STAGES

CHECKPOINT_ROWS = 6


class RecordingSupervisor(EngineSupervisor):
    """A supervisor that writes each request to a file."""

    def __init__(self, start: StartEngine, request_log: TextIO) -> None:
        super().__init__(start)
        self._request_log = request_log

    async def complete(self, request: Request) -> Completion:
        self._request_log.write(f"{request.stage} {request.video_id.split('-')[0]}\n")
        self._request_log.flush()
        return await super().complete(request)


def main(root: str, source: str, shard: str, request_log: str, engine: str) -> None:
    """Caption the shard; the exit code is 0 if it was published."""
    recipe, events = Recipe(generation=DETERMINISTIC), RunEvents()
    run = CaptionRun(
        Root.open(root),
        Root.open(source),
        recipe,
        STAGES,
        owner="the run that is killed",
        checkpoint_rows=CHECKPOINT_ROWS,
        checkpoint_seconds=1.0,
    )

    def start() -> StartEngine:
        if engine == "fake":
            return lambda: start_fake_engine(FakeEngine(seconds=0.1))
        return lambda: start_engine(Path(engine), recipe, EngineConfig())

    with Path(request_log).open("a") as file, Sandbox(workers=1) as sandbox:
        asyncio.run(caption_shards(RecordingSupervisor(start(), file), sandbox, run, [shard], [events]))
    if set(events.tables) != {shard}:
        sys.exit(f"{events.failures} {events.skips}")


if __name__ == "__main__":
    main(*sys.argv[1:])
