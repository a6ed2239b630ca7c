"""Benchmark of everything around engine and decoder: one large shard from its clips to its gallery, part by part.

    python -m benchmarks.shard [--windows 5000]

The engine answers at once with sentences of good captions, and the decoder returns black frames at once. All else is
real: clips, probes, Dagster on SQLite, tables, checkpoints, previews, checks and gallery. The shard is captioned,
captioned again with all rows reused, and captioned with another prompt of stage 2. The table gives seconds for each
1,000 windows. A part excludes the parts within it; the whole includes the processes that probe. The last line is JSON:
CPU seconds for each 1,000 windows, and `publication_ratio`, the CPU time of publication as a multiple of that of
writing the same rows with pyarrow alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import av
import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from av.video.stream import VideoStream

from caption_assets import resources
from caption_assets.captioning import open_shard, preview_store, shard_queue, stage_run
from caption_assets.captioning.admission import Load
from caption_assets.captioning.budget import FrameGrid, visual_tokens
from caption_assets.captioning.recipe_file import built_in
from caption_assets.captioning.request import Completion, Request
from caption_assets.captioning.sampling import SamplingParams
from caption_assets.captioning.window_job import WindowJob
from caption_assets.dagster_lib import check_events, run_log
from caption_assets.definitions import build_definitions
from caption_assets.models.variants import SAMPLE, PixelLimits
from caption_assets.report import gallery
from caption_assets.settings import Settings
from caption_assets.store.previews import Preview
from caption_assets.store.tables import table_path
from caption_assets.video.decode import Frames
from caption_assets.video.preview import make_preview
from caption_assets.workers.sandbox import Sandbox

SHARD = "large"
WINDOWS_PER_CLIP = 2
WINDOW_FRAMES = 256
FPS = 25
SIZE = 320, 180
"""Width and height of the clips and of the frames of previews, in pixels."""
CLIPS = 8
"""Number of different clips and previews. All other clips are hard links."""
SENTENCES = [
    sentence
    for line in (Path(__file__).parent / "texts" / "good.jsonl").read_text().splitlines()
    if (found := json.loads(line))["kind"] == "general"
    for sentence in found["caption"].split(". ")
]
STAGE1_SENTENCES, STAGE2_SENTENCES = 5, 7
"""Number of sentences of a caption: 78 and 110 words on average."""
PARTS: dict[str, tuple[tuple[object, str], ...]] = {
    "open and reuse": ((shard_queue, "_read_shard"),),
    "flags": ((stage_run, "find_flags"),),
    "previews": ((preview_store, "write_preview"),),
    "checkpoints": ((open_shard, "write_checkpoint"), (open_shard, "remove_checkpoints")),
    "publication": ((open_shard.OpenShard, "_publish"),),
    "plots": ((gallery, "draw_plots"),),
    "gallery": ((run_log, "write_gallery"),),
    "checks": ((check_events, "check_table"),),
    "metadata": ((run_log, "caption_metadata"),),
    "event log": ((dg.DagsterInstance, "handle_new_event"),),
}
"""The parts of a run, each with its functions, as owner and name."""


@dataclass
class Seconds:
    """Seconds of wall and CPU time."""

    wall: float = 0.0
    cpu: float = 0.0

    def add(self, wall: float, cpu: float) -> None:
        """Add seconds, or subtract them."""
        self.wall += wall
        self.cpu += cpu


@dataclass
class Clock:
    """Measures parts of a run. Within a thread, the time of an inner part is not that of the outer one."""

    parts: defaultdict[str, Seconds] = field(default_factory=lambda: defaultdict(Seconds))
    _outer: threading.local = field(default_factory=threading.local)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Within the block, measure all ``PARTS``."""
        with ExitStack() as stack:
            for part, functions in PARTS.items():
                for owner, name in functions:
                    stack.enter_context(patch.object(owner, name, self._timed(part, getattr(owner, name))))
            yield

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            outer, self._outer.part = getattr(self._outer, "part", None), part
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
                self._outer.part = outer
                with self._lock:
                    self.parts[part].add(wall, cpu)
                    if outer:
                        self.parts[outer].add(-wall, -cpu)

        return timed


class InstantEngine:
    """An engine that answers at once; its interface is that of ``CaptionEngine``."""

    resent = 0
    is_hybrid = False
    special_tokens: frozenset[str] = frozenset()
    max_video_tokens = 10**9
    context = 2048
    factor = SAMPLE.pixels.factor
    capacity = Load(64, 10**9, 10**12, 10**12)

    async def complete(self, request: Request) -> Completion:
        """A caption of stage 1, or that of stage 2 with three of its sentences."""
        await asyncio.sleep(0)
        request.on_prefilled()
        rng = Random(f"{request.video_id} {request.prompt}")
        kept = [sentence for sentence in SENTENCES if sentence in request.prompt][:3] if request.stage == 2 else []
        count = (STAGE1_SENTENCES if request.stage == 1 else STAGE2_SENTENCES) - len(kept)
        text = ". ".join([*kept, *rng.sample(SENTENCES, count)]).rstrip(".") + "."
        video = 160
        cached = video if request.is_cached else 0
        return Completion(text, "stop", 300, cached, 80, cacheable_tokens=video)

    def load(self, grid: FrameGrid, video_tokens: int, text_tokens: int) -> Load:
        """One window."""
        return Load(1, text_tokens, 0, grid.bytes)

    def limits(self, pixels: PixelLimits) -> PixelLimits:
        """The model's own."""
        return pixels

    def resolve(self, generation: SamplingParams) -> SamplingParams:
        """The parameters themselves."""
        return generation

    def render(self, instruction: str, *, video: bool = True) -> str:
        """The instruction itself."""
        return instruction

    def text_tokens(self, prompt: str, *, video: bool = True) -> int:
        """A token for each six characters."""
        return len(prompt) // 6

    async def video_tokens(self, grid: FrameGrid, fps: float) -> int:
        """Those of Qwen2.5-VL."""
        return visual_tokens(grid, self.factor)


@asynccontextmanager
async def start_instant_engine(*_: object) -> AsyncIterator[InstantEngine]:
    """The counterpart of ``start_engine``."""
    yield InstantEngine()


class InstantDecoder:
    """A decoder of black frames; its interface is that of ``SandboxDecoder``."""

    previews: Sequence[Preview] = ()
    """Previews to store in turn."""

    def __init__(self, _: Sandbox, store_preview: Callable[[WindowJob, Preview], None] | None = None) -> None:
        self._store_preview = store_preview

    def __enter__(self) -> InstantDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    async def frames(self, job: WindowJob, grid: FrameGrid) -> Frames:
        """Black frames."""
        if self._store_preview:
            self._store_preview(job, self.previews[job.number % len(self.previews)])
        start, end = job.window.start_frame or 0, job.window.end_frame or 0
        indices = tuple(int(index) for index in np.linspace(start, end - 1, grid.frames))
        pixels = np.zeros((grid.frames, grid.height, grid.width, 3), np.uint8)
        return Frames(pixels, indices, 2.0, replaced=0, padded=0)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=5000)
    windows = parser.parse_args().windows
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), windows)
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


def measure(folder: Path, windows: int) -> dict[str, float]:
    """Run the assets over a shard of so many windows, and return the figures."""
    root, recipe, other = folder / "root", built_in("general"), folder / "other.yaml"
    stages = [stage.name for stage in recipe.stages]
    prompts = [{"name": stage.name, "prompt": stage.prompt} for stage in recipe.stages]
    prompts[1]["prompt"] += " Name the colours."
    other.write_text(json.dumps({"stages": prompts}))  # JSON is YAML
    InstantDecoder.previews = write_clips(root / "shards" / SHARD, windows // WINDOWS_PER_CLIP)
    (folder / "dagster").mkdir()
    figures: dict[str, float] = {}
    with (
        dg.DagsterInstance.local_temp(str(folder / "dagster")) as instance,
        patch.object(resources, "start_engine", start_instant_engine),
        patch.object(shard_queue, "SandboxDecoder", InstantDecoder),
    ):
        run(instance, folder, recipe.name, ["shard_index", "model_weights"], None)
        for name, used, assets in (
            ("manifest", recipe.name, ["clip_manifest"]),
            ("captions", recipe.name, stages),
            ("reused", recipe.name, stages),
            ("other_prompt", str(other), stages[1:]),
        ):
            clock = Clock()
            wall, cpu = time.perf_counter(), cpu_seconds()
            with clock.watch():
                run(instance, folder, used, assets, SHARD)
            clock.parts["whole"].add(time.perf_counter() - wall, cpu_seconds() - cpu)
            for part, seconds in clock.parts.items():
                wall, cpu = 1000 * seconds.wall / windows, 1000 * seconds.cpu / windows
                print(f"{name:12} {part:14} {wall:7.3f} s wall {cpu:7.3f} s CPU", flush=True)
            figures[name] = cpu
            if name == "captions":
                written = sum(plain_seconds(root / table_path(stage, SHARD)) for stage in stages)
                figures["publication_ratio"] = clock.parts["publication"].cpu / written
    return figures


def plain_seconds(path: Path) -> float:
    """CPU time of writing a table's rows with pyarrow alone."""
    table = pq.read_table(path, partitioning=None)
    records = table.to_pylist()
    seconds = []
    for _ in range(3):
        begun = time.process_time()
        pq.write_table(pa.Table.from_pylist(records, schema=table.schema), path.with_name(".plain"))
        seconds.append(time.process_time() - begun)
    return min(seconds)


def run(instance: dg.DagsterInstance, folder: Path, recipe: str, assets: Sequence[str], shard: str | None) -> None:
    """Materialize assets, of a shard if there is one."""
    settings = Settings(root=str(folder / "root"), cache=folder / "cache", recipe=recipe, previews=True)
    job = build_definitions(settings).get_implicit_global_asset_job_def()
    selection = [dg.AssetKey(asset) for asset in assets]
    job.execute_in_process(asset_selection=selection, partition_key=shard, instance=instance)


def write_clips(folder: Path, count: int) -> list[Preview]:
    """Write the clips of a shard, and return their previews."""
    folder.mkdir(parents=True)
    previews = []
    for number in range(count):
        clip = folder / f"{number:06}.mp4"
        if number < CLIPS:
            previews.append(write_clip(clip, number))
        else:
            os.link(folder / f"{number % CLIPS:06}.mp4", clip)
    return previews


def write_clip(path: Path, seed: int) -> Preview:
    """Write a clip of moving noise, and return its preview."""
    width, height = SIZE
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "b": "1M"})
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(WINDOWS_PER_CLIP * WINDOW_FRAMES):
            picture = np.roll(noise, index, axis=1) // 2 + 8 * seed
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode(None))
    return make_preview(np.stack([noise] * 20))


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


if __name__ == "__main__":
    main()
