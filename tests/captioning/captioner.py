"""A process that captions a shard, to be killed; its arguments are root, source, shard, a file, and an engine.

Each request is appended to the file as a line of stage and window id. The engine is the folder of a model for vLLM, or
``stand-in``.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TextIO

from caption_assets.captioning.engine import EngineConfig, start_engine
from caption_assets.captioning.job import Job
from caption_assets.captioning.recipe import DETERMINISTIC, Recipe
from caption_assets.captioning.request import Completion, Request
from caption_assets.captioning.shard_queue import caption_shards
from caption_assets.captioning.stages import STAGES
from caption_assets.captioning.supervisor import EngineSupervisor, StartEngine
from caption_assets.store.root import Root
from caption_assets.workers.sandbox import Sandbox
from tests.captioning.stand_in import StandIn, start_stand_in
from tests.captioning.watch import Log

CHECKPOINT_ROWS = 6


class WatchedKeeper(EngineSupervisor):
    """Writes down what is asked."""

    def __init__(self, start: StartEngine, asked: TextIO) -> None:
        super().__init__(start)
        self._asked = asked

    async def complete(self, request: Request) -> Completion:
        self._asked.write(f"{request.stage} {request.video_id.split('-')[0]}\n")
        self._asked.flush()
        return await super().complete(request)


def main(root: str, source: str, shard: str, asked: str, engine: str) -> None:
    """Caption the shard; the exit code tells whether it was published."""
    recipe, log = Recipe(generation=DETERMINISTIC), Log()
    job = Job(
        Root.open(root),
        Root.open(source),
        recipe,
        STAGES,
        owner="the run that is killed",
        checkpoint_rows=CHECKPOINT_ROWS,
        checkpoint_seconds=1.0,
    )

    def start() -> StartEngine:
        if engine == "stand-in":
            return lambda: start_stand_in(StandIn(seconds=0.1))
        return lambda: start_engine(Path(engine), recipe, EngineConfig())

    with Path(asked).open("a") as file, Sandbox(workers=1) as sandbox:
        asyncio.run(caption_shards(WatchedKeeper(start(), file), sandbox, job, [shard], [log]))
    if set(log.tables) != {shard}:
        sys.exit(f"{log.failures} {log.skips}")


if __name__ == "__main__":
    main(*sys.argv[1:])
