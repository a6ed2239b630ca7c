"""The arm of this project in the comparison with NeMo Curator: shards become manifests and captions, as in the assets.

    python -m benchmarks.peer_ours '{"connection": ..., "model": ...}'

The commands come through the file descriptor ``connection``: the folder of the shards, and the folder of the tables.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.stages import clear_caches
from caption_assets.captioning.caption_run import CaptionRun
from caption_assets.captioning.engine import EngineConfig, start_engine
from caption_assets.captioning.open_shard import Published
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.recipe_file import built_in
from caption_assets.captioning.sampling import SamplingParams
from caption_assets.captioning.shard_queue import RunObserver, caption_shards
from caption_assets.captioning.stages import StageGraph
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.errors import CaptionAssetsError
from caption_assets.models.variants import SAMPLE, PixelLimits
from caption_assets.sources.manifest import probe_clips
from caption_assets.sources.shard import find_shard
from caption_assets.store.root import Root
from caption_assets.store.tables import publish_manifest
from caption_assets.video.window import Windowing
from caption_assets.workers.sandbox import Sandbox

PLACEHOLDER = "user_prompt"
GENERAL = built_in("general").stages
FIRST = f"{GENERAL[0].prompt} {PLACEHOLDER}"
"""The first prompt of both arms. NeMo Curator makes the second one from it: it replaces the placeholder."""
SECOND = GENERAL[1].prompt.replace(f"{{{GENERAL[0].name}}}", "") + "\n\n"
"""The text that replaces it, before the first caption."""
STAGES = (
    replace(GENERAL[0], prompt=FIRST),
    replace(GENERAL[1], prompt=FIRST.replace(PLACEHOLDER, f"{SECOND}{{{GENERAL[0].name}}}")),
)
VARIANT = replace(SAMPLE, pixels=replace(SAMPLE.pixels, total_pixels=PixelLimits().total_pixels))
"""The sample model without its limit on a window's frames, which NeMo Curator does not have."""
SAMPLING = SamplingParams(max_output_tokens=64)
"""NeMo Curator's values, with a limit of our own: the sample model does not know these prompts."""
RECIPE = Recipe(variant=VARIANT, graph=StageGraph("peer", STAGES), generation=SAMPLING, regenerations=0)
"""NeMo Curator regenerates nothing."""


Answers = tuple[dict[str, int], dict[str, str | None]]
"""Numbers of tokens, and the second caption of each clip."""


class Results(RunObserver):
    """Collects the published captions, and counts tokens."""

    def __init__(self) -> None:
        self.counts = {"prompt_tokens": 0, "cached_tokens": 0, "output_tokens": 0}
        self.captions: dict[str, str | None] = {}

    def published(self, shard: str, published: Published) -> None:
        """Add a shard."""
        for table in published.tables.values():
            for row in table.rows:
                for name in self.counts:
                    self.counts[name] += getattr(row, name) or 0
                self.captions[f"{shard}/{row.clip_key}"] = row.caption

    def failed(self, shard: str, error: CaptionAssetsError) -> None:
        """Raise the error: there is nothing to compare."""
        raise error

    def warned(self, message: str) -> None:
        """Print the warning."""
        print(message, flush=True)


def main() -> None:
    """Run commands until the connection ends."""
    options = json.loads(sys.argv[1])
    with Connection(options["connection"]) as commands, Sandbox() as sandbox:
        asyncio.run(serve(commands, sandbox, Path(options["model"])))


async def serve(commands: Connection, sandbox: Sandbox, model: Path) -> None:
    """Start the engine, and run commands."""
    async with EngineSupervisor(lambda: start_engine(model, RECIPE, EngineConfig())) as supervisor:
        commands.send("ready")
        while (command := await asyncio.to_thread(commands.recv)) is not None:
            commands.send(await caption(supervisor, sandbox, *command))
            await clear_caches(supervisor.engine._llm)
            commands.send("idle")


async def caption(supervisor: EngineSupervisor, sandbox: Sandbox, source: str, target: str) -> Answers:
    """Make the manifests and captions of all shards of a folder."""
    clips, root, results = Root.open(source), Root.open(target), Results()
    shards = sorted(folder.name for folder in Path(source).iterdir())
    for shard in shards:
        probed = probe_clips(sandbox, clips, find_shard(clips, shard), Windowing())
        publish_manifest(root, shard, (row for clip in probed for row in clip.rows), {})
    run = CaptionRun(root, clips, RECIPE)
    await caption_shards(nullcontext(supervisor), sandbox, run, shards, [results])
    return results.counts, results.captions


if __name__ == "__main__":
    main()
