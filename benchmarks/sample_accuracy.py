"""Benchmark of the sample model: its accuracy on held-out clips, through the real pipeline.

    python -m benchmarks.sample_accuracy [--clips 300]

A shard of held-out clips is written, probed, and captioned with the recipe ``sample`` on vLLM, as the assets do it. The
clips have mixed sizes (160x120 to 1280x720, also in portrait), frame rates (10 to 60 fps), lengths (1 s to one window)
and codecs (H.264, VP9). A further stage, `claim`, asks the question of `alignment` about a caption with one wrong
attribute: the clip's own prompt.

The last line is JSON: `clips`, the share of exactly right answers of each text stage and of `attributes` (all five
fields), and for `alignment` the area under the ROC curve between the scores of right stage-2 captions and of claims.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from caption_assets.captioning.caption_run import CaptionRun
from caption_assets.captioning.engine import EngineConfig, start_engine
from caption_assets.captioning.open_shard import Published, PublishedTable
from caption_assets.captioning.output import ChoiceOutput, JsonOutput
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.recipe_file import built_in
from caption_assets.captioning.shard_queue import RunObserver, caption_shards
from caption_assets.captioning.stages import Stage, StageGraph
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.errors import CaptionAssetsError
from caption_assets.models.cache import ensure_local
from caption_assets.models.mirror import publish
from caption_assets.sample.clips import SampleClip, encode, random_clip
from caption_assets.sample.lessons import another_value
from caption_assets.sample.roc import roc_auc
from caption_assets.sample.world import VALUES, Scene, stage2_caption
from caption_assets.sources.manifest import probe_clips
from caption_assets.sources.shard import find_shard
from caption_assets.store.root import Root
from caption_assets.store.tables import publish_manifest
from caption_assets.video.window import Windowing
from caption_assets.workers.sandbox import Sandbox

FIRST_SEED = 50_000_000
"""First seed of the clips. Training and its own held-out examples use other seeds."""
SHARD = "held-out"
SAMPLE = built_in("sample")
ALIGNMENT = SAMPLE.stage("alignment")
CLAIM = Stage("claim", "Is this description right?", ALIGNMENT.output)
GRAPH = StageGraph("accuracy", (*SAMPLE.stages, CLAIM), clip_prompt=CLAIM.name)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=300)
    count = parser.parse_args().clips
    with tempfile.TemporaryDirectory() as folder:
        root = Root.open(folder)
        clips = write_clips(Path(folder) / "shards" / SHARD, count)
        watcher = Watcher()
        asyncio.run(run(root, Path(folder) / "cache", watcher))
    shares = {
        stage.name: compare(stage, watcher.tables[stage.name], clips)
        for stage in SAMPLE.stages
        if not isinstance(stage.output, ChoiceOutput)
    }
    print(json.dumps({"clips": count, **shares, ALIGNMENT.name: alignment_auc(watcher.tables, clips)}))


def write_clips(folder: Path, count: int) -> dict[str, SampleClip]:
    """Write the held-out clips and claims about them into ``folder``; return the clips' descriptions by file name."""
    folder.mkdir(parents=True)
    clips = [random_clip(FIRST_SEED + index) for index in range(count)]
    named = {f"{index:05d}{clip.suffix}": clip for index, clip in enumerate(clips)}
    with ProcessPoolExecutor() as pool:
        for done, (name, data) in enumerate(zip(named, pool.map(encode, clips), strict=True), start=1):
            (folder / name).write_bytes(data)
            claim = false_claim(named[name].scenes[0], done)
            prompt = ALIGNMENT.instruction({"stage2_captions": claim})
            (folder / name).with_suffix(".json").write_text(json.dumps({"prompt": prompt}))
            if done % 50 == 0:
                print(f"{done} of {count} clips written", flush=True)
    return named


def false_claim(scene: Scene, seed: int) -> str:
    """A stage-2 caption with one wrong attribute."""
    rng = np.random.default_rng(seed)
    wrong = str(rng.choice(list(VALUES)))
    return stage2_caption(**{**scene.attributes, wrong: another_value(wrong, scene.attributes[wrong], rng)})


async def run(root: Root, cache: Path, watcher: Watcher) -> None:
    """Run the chain on the held-out shard: weights, manifest, all stages."""
    recipe = Recipe(graph=GRAPH)
    source = Root.open(f"{root.url}/shards")
    publish(root, recipe.variant, cache)
    with Sandbox() as sandbox:
        clips = probe_clips(sandbox, source, find_shard(source, SHARD), Windowing())
        publish_manifest(root, SHARD, (row for clip in clips for row in clip.rows), {})
    run = CaptionRun(root, source, recipe, recipe.stages)
    model = ensure_local(root, recipe.variant, cache)
    engine = EngineSupervisor(lambda: start_engine(model, recipe, EngineConfig()))
    with Sandbox() as sandbox:
        await caption_shards(engine, sandbox, run, [SHARD], [watcher])


class Watcher(RunObserver):
    """An observer that prints progress and keeps the published tables."""

    def __init__(self) -> None:
        self.tables: Mapping[str, PublishedTable] = {}

    def captioned(self, shard: str, done: int, windows: int, *, ok: bool) -> None:
        """Print the number of captioned windows, for every 50th."""
        if done % 50 == 0:
            print(f"{done} of {windows} windows captioned", flush=True)

    def published(self, shard: str, published: Published) -> None:
        """Keep the tables."""
        self.tables = published.tables

    def failed(self, shard: str, error: CaptionAssetsError) -> None:
        """Raise the error: there is nothing to compare."""
        raise error

    def skipped(self, shard: str, reason: str) -> None:
        """Raise an error: no other run writes the shard."""
        raise AssertionError(reason)

    def warned(self, message: str) -> None:
        """Print the warning."""
        print(message, flush=True)


def compare(stage: Stage, published: PublishedTable, clips: Mapping[str, SampleClip]) -> float:
    """Share of right answers. The wrong ones and the words that they miss are printed, and the flags of all."""
    is_json = isinstance(stage.output, JsonOutput)
    wrong: Counter[str] = Counter()
    mistakes = spellings = 0
    for row in published.rows:
        clip = clips[row.clip_key]
        answer, expected = row.caption or "", clip.scenes[0].answers[stage.name]
        if answer == expected:
            continue
        if is_json and answer and json.loads(answer) == json.loads(expected):
            spellings += 1
            continue
        mistakes += 1
        shape = f"{clip.width}x{clip.height}, {clip.frames} frames"
        print(f"{stage.name} {row.clip_key} ({shape}): {answer!r}, expected {expected!r}; {row.error or 'no error'}")
        wrong.update(set(expected.split()) - set(answer.split()))
    flags = Counter(flag for row in published.rows for flag in row.flags or ())
    print(
        f"{stage.name}: {mistakes} of {len(published.rows)} wrong; words missed: {dict(wrong.most_common())}; "
        f"other spelling of the same JSON: {spellings}; flags: {dict(flags)}"
    )
    return round(1 - mistakes / len(published.rows), 4)


def alignment_auc(tables: Mapping[str, PublishedTable], clips: Mapping[str, SampleClip]) -> float:
    """Area under the ROC curve between the scores of right stage-2 captions and those of false claims."""
    right = [
        scores["yes"]
        for caption, row in zip(tables["stage2_captions"].rows, tables[ALIGNMENT.name].rows, strict=True)
        if caption.caption == clips[row.clip_key].scenes[0].stage2 and (scores := row.probabilities)
    ]
    false = [row.probabilities["yes"] for row in tables[CLAIM.name].rows if row.probabilities]
    accepted, rejected = sum(score > 0.5 for score in right), sum(score < 0.5 for score in false)
    print(f"alignment: {accepted} of {len(right)} right captions accepted, {rejected} of {len(false)} claims rejected")
    return round(roc_auc(right, false), 4)


if __name__ == "__main__":
    main()
