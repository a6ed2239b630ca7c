"""Benchmark of four stages in one run: against four runs of one stage each, and against the reference's way.

    python -m benchmarks.stages [--windows 96] [--rounds 3]

The sample model answers four questions about each window: a caption, a fuller one, its attributes as JSON, and whether
the fuller caption is right. Arms take turns, each with empty caches:

- `joint`: one run of all stages, from clips to tables;
- `separate`: four runs of one stage each. Each has a root of its own with the manifest and the tables that the stage
  needs. The answers must be those of `joint`;
- `ready`: all stages, with frames decoded beforehand and without tables;
- `reference`: NeMo Curator's way, with frames decoded beforehand: a captioning stage with an engine of its own for each
  question. It sends every video, in chunks of 16 with a drain after each. Prefix caching is on, as by vLLM's default,
  but each engine sees a video once;
- `chunks`: all questions about a chunk in turn on one engine of vLLM's, as NeMo Curator requests its second caption. A
  video is sent again for each question, and found in the caches.

Times are those of captioning, without the starts of the engines. Speed-ups are medians over the rounds: of `separate`
over `joint`, and of `reference` over `ready`. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import operator
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

from benchmarks.sample_accuracy import Watcher
from benchmarks.two_stage import CHUNK, SANDBOX, PredecodedFrames, cached_of_cacheable, make_clips, plain_engine
from caption_assets.captioning.caption_run import CaptionRun
from caption_assets.captioning.captioner import caption
from caption_assets.captioning.engine import EngineConfig, start_engine, video_metadata
from caption_assets.captioning.output import ChoiceOutput
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.recipe_file import built_in
from caption_assets.captioning.shard_queue import caption_shards
from caption_assets.captioning.stages import Stage, StageGraph
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.captioning.window_job import WindowJob
from caption_assets.models.cache import ensure_local
from caption_assets.models.mirror import publish
from caption_assets.sources.manifest import clip_pieces, probe_clips
from caption_assets.sources.shard import find_shard
from caption_assets.store.root import Root
from caption_assets.store.tables import CLIP_MANIFEST, ManifestRow, publish_manifest, read_manifest
from caption_assets.video.window import Windowing

SHARD = "clips"
WARM_UP = 16
"""Number of windows in the round that is not measured."""
STAGES = tuple(stage for stage in built_in("sample").stages if stage.video)
RECIPE = Recipe(graph=StageGraph("stages", STAGES), regenerations=0)
Answers = dict[str, list[str | None]]
"""Answers of all windows, by stage."""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(measure(Path(folder), options.windows, options.rounds))
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


async def measure(folder: Path, windows: int, rounds: int) -> dict[str, float]:
    """The speed-ups, and the share of cacheable tokens that came from the cache."""
    root = Root.open(str(folder / "root"))
    publish(root, RECIPE.variant, folder / "cache")
    model = ensure_local(root, RECIPE.variant, folder / "cache")
    seconds = defaultdict[str, list[float]](list)
    datasets = Dataset.make(folder / "warm-up", WARM_UP), Dataset.make(folder / "measured", windows)
    begun = time.monotonic()
    async with EngineSupervisor(lambda: start_engine(model, RECIPE, EngineConfig())) as supervisor:
        start = time.monotonic() - begun
        async with plain_engine(model, RECIPE, EngineConfig()) as plain:
            warm_up, arms = [
                Arms(supervisor, plain, dataset, await PredecodedFrames.of(supervisor, RECIPE, dataset.jobs()))
                for dataset in datasets
            ]
            await warm_up.run()
            for number in range(1, rounds + 1):
                print(f"round {number}", flush=True)
                for arm, duration in (await arms.run()).items():
                    seconds[arm].append(duration)
        of_cacheable = cached_of_cacheable(supervisor.engine, RECIPE, arms.jobs)

    def ratio(slow: str, fast: str, starts: int = 0) -> float:
        pairs = zip(seconds[slow], seconds[fast], strict=True)
        return median((one + len(STAGES) * start * starts) / (two + start * starts) for one, two in pairs)

    print(f"separate over joint with starts of {start:.1f} s: {ratio('separate', 'joint', starts=1):.2f}")
    print(f"chunks over ready: {ratio('chunks', 'ready'):.2f}")
    return {
        "speedup_joint_vs_separate": ratio("separate", "joint"),
        "speedup_vs_reference": ratio("reference", "ready"),
        "cached_of_cacheable": of_cacheable,
    }


def answers_of(jobs: Sequence[WindowJob]) -> Answers:
    """The answers of finished jobs."""
    return {stage.name: [job.row(stage).caption for job in jobs] for stage in STAGES}


async def clear_caches(llm: Any) -> None:
    """Empty the caches of one of vLLM's engines."""
    await llm.reset_mm_cache()
    await llm.reset_encoder_cache()
    if not await llm.reset_prefix_cache():
        raise RuntimeError("the prefix cache is in use")


@dataclass(frozen=True, slots=True)
class Dataset:
    """A shard of clips of one window each."""

    folder: Path
    """Has the shard and a root with the manifest."""
    manifest: Sequence[ManifestRow]

    @classmethod
    def make(cls, folder: Path, count: int) -> Dataset:
        """Write the clips of the other benchmark, and probe them."""
        (folder / SHARD).mkdir(parents=True)
        for number, (clip, data) in enumerate(make_clips(count)):
            (folder / SHARD / f"{number:05}{clip.suffix}").write_bytes(data)
        source, root = Root.open(str(folder)), Root.open(str(folder / "root"))
        clips = probe_clips(SANDBOX, source, find_shard(source, SHARD), Windowing())
        publish_manifest(root, SHARD, (row for clip in clips for row in clip.rows), {})
        return cls(folder, read_manifest(root, SHARD))

    @property
    def source(self) -> Root:
        """The root of the clips."""
        return Root.open(str(self.folder))

    def new_root(self, *tables: Path) -> Path:
        """A new root with the manifest and these tables."""
        folder = self.folder / uuid4().hex
        for table in (self.folder / "root" / CLIP_MANIFEST, *tables):
            shutil.copytree(table, folder / table.name)
        return folder

    def jobs(self) -> list[WindowJob]:
        """A job for each window."""
        return [
            WindowJob(row, partial(clip_pieces, self.source, row), STAGES, SHARD, number)
            for number, row in enumerate(self.manifest)
        ]


class Arms:
    """The arms of the benchmark. Each returns its duration in seconds, and its answers.

    Args:
        supervisor: runs this project's engine.
        plain: an engine of vLLM's.
        dataset: the clips.
        predecoded: their frames.
    """

    def __init__(
        self, supervisor: EngineSupervisor, plain: Any, dataset: Dataset, predecoded: PredecodedFrames
    ) -> None:
        self._supervisor = supervisor
        self._plain = plain
        self._dataset = dataset
        self._predecoded = predecoded
        self.jobs: list[WindowJob] = []
        """Jobs with the rows of the last joint run."""

    async def run(self) -> dict[str, float]:
        """Durations of the arms, in seconds.

        Raises:
            RuntimeError: if the separate runs have other answers than the joint one.
        """
        seconds, answers = dict[str, float](), dict[str, Answers]()
        windows = len(self._dataset.manifest)
        for arm in (self.joint, self.separate, self.ready, self.reference, self.chunks):
            name = arm.__name__
            seconds[name], answers[name] = await arm()
            same = {
                stage: sum(map(operator.eq, texts, answers["joint"][stage])) for stage, texts in answers[name].items()
            }
            print(
                f"{name}: {windows / seconds[name]:.1f} windows/s, answers as in joint: {same} of {windows}", flush=True
            )
        if answers["separate"] != answers["joint"]:
            raise RuntimeError("the separate runs have other answers than the joint one")
        return seconds

    async def joint(self) -> tuple[float, Answers]:
        """One run of all stages."""
        seconds, watcher = await self._caption(self._dataset.new_root(), STAGES)
        self.jobs = self._dataset.jobs()
        for stage in STAGES:
            for job, row in zip(self.jobs, watcher.tables[stage.name].rows, strict=True):
                job.add_row(stage, row)
        return seconds, answers_of(self.jobs)

    async def separate(self) -> tuple[float, Answers]:
        """A run for each stage."""
        total, answers, tables = 0.0, Answers(), dict[str, Path]()
        for stage in STAGES:
            folder = self._dataset.new_root(*(tables[name] for name in stage.needs))
            seconds, watcher = await self._caption(folder, (stage,))
            total += seconds
            tables[stage.name] = folder / stage.name
            answers[stage.name] = [row.caption for row in watcher.tables[stage.name].rows]
        return total, answers

    async def _caption(self, folder: Path, stages: tuple[Stage, ...]) -> tuple[float, Watcher]:
        await clear_caches(self._supervisor.engine._llm)
        run, watcher = CaptionRun(Root.open(str(folder)), self._dataset.source, RECIPE, stages), Watcher()
        begun = time.monotonic()
        await caption_shards(nullcontext(self._supervisor), SANDBOX, run, [SHARD], [watcher])
        return time.monotonic() - begun, watcher

    async def ready(self) -> tuple[float, Answers]:
        """All stages, with frames decoded beforehand."""
        await clear_caches(self._supervisor.engine._llm)
        jobs = self._dataset.jobs()

        async def stream() -> AsyncIterator[WindowJob]:
            for job in jobs:
                yield job

        async def ignore(job: WindowJob) -> None:
            pass

        begun = time.monotonic()
        await caption(self._supervisor, RECIPE, self._predecoded, stream(), ignore)
        return time.monotonic() - begun, answers_of(jobs)

    async def reference(self) -> tuple[float, Answers]:
        """A pass over all chunks for each stage, with empty caches."""
        total, answers = 0.0, self._no_answers()
        for stage in STAGES:
            await clear_caches(self._plain)
            begun = time.monotonic()
            for chunk in self._chunks():
                await self._complete(stage, chunk, answers)
            total += time.monotonic() - begun
        return total, answers

    async def chunks(self) -> tuple[float, Answers]:
        """All stages of one chunk after the other."""
        await clear_caches(self._plain)
        answers = self._no_answers()
        begun = time.monotonic()
        for chunk in self._chunks():
            for stage in STAGES:
                await self._complete(stage, chunk, answers)
        return time.monotonic() - begun, answers

    def _no_answers(self) -> Answers:
        return {stage.name: [None] * len(self._dataset.manifest) for stage in STAGES}

    def _chunks(self) -> Iterator[range]:
        windows = len(self._dataset.manifest)
        return (range(first, min(first + CHUNK, windows)) for first in range(0, windows, CHUNK))

    async def _complete(self, stage: Stage, chunk: range, answers: Answers) -> None:
        """The answers of a chunk, which plain vLLM generates from whole videos."""
        engine = self._supervisor.engine
        sampling = engine._sampling(RECIPE.params(stage), stage.output)

        async def complete(number: int) -> None:
            texts = {name: answers[name][number] or "" for name in stage.needs}
            frames = self._predecoded.by_clip[self._dataset.manifest[number].clip_key]
            prompt = {
                "prompt": engine.render(stage.instruction(texts)),
                "multi_modal_data": {"video": [(frames.pixels, video_metadata(frames))]},
            }
            final: Any = None
            async for output in self._plain.generate(prompt, sampling, uuid4().hex):
                final = output
            answer = final.outputs[0]
            if isinstance(stage.output, ChoiceOutput):
                found = engine._choices.probabilities(stage.output, answer)
                answers[stage.name][number] = max(found, key=found.__getitem__)
            else:
                answers[stage.name][number] = answer.text

        await asyncio.gather(*map(complete, chunk))


if __name__ == "__main__":
    main()
