"""Benchmark of two-stage captioning: this project's streaming, against NeMo Curator's chunks with the same model.

    python -m benchmarks.two_stage [--windows 200] [--rounds 3] [--memory-windows 2000]

Every arm captions the same windows in both stages with the sample model. Each arm has ids and pixels of its own, so
that no arm profits from another's caches:

- `f32`, `u8` (the reference): chunks of 16 with a drain after each stage, and the whole video sent in both stages, as
  float32 or as uint8. vLLM builds the engine from our arguments, without our larger cache of encoded videos;
- `shared`: the reference's scheduling on our engine, as uint8;
- `ready`: our streaming, with frames decoded beforehand, as another stage of the reference's pipeline does it. The
  speed-ups compare with this arm;
- `decoding`: our streaming, with decoding included, for `throughput_vs_predecoded`.

Arms take turns; speed-ups are medians over the rounds. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import numpy as np
import psutil

from caption_assets.captioning.budget import FrameGrid
from caption_assets.captioning.captioner import Captioner, caption
from caption_assets.captioning.decoding import Decoder, SandboxDecoder
from caption_assets.captioning.engine import (
    CaptionEngine,
    EngineConfig,
    engine_arguments,
    start_engine,
    video_metadata,
)
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.recipe_file import built_in
from caption_assets.captioning.sampling import SamplingParams
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.captioning.window_job import WindowJob
from caption_assets.models.cache import ensure_local
from caption_assets.models.mirror import publish
from caption_assets.models.variants import SAMPLE, PixelLimits
from caption_assets.sample.clips import SampleClip, encode, random_clip
from caption_assets.store.content_tag import ContentTag
from caption_assets.store.root import Root
from caption_assets.store.tables import ManifestRow, Status
from caption_assets.video.decode import Frames
from caption_assets.video.frame_sampling import FrameSampling
from caption_assets.workers.sandbox import Sandbox

SANDBOX = Sandbox()
"""Sandbox of all arms, so that its workers run before the first measured round."""
CHUNK = 16
"""Batch size of the reference."""
FPS = 10
"""Frame rate of the clips: twice the sampled rate, so that half of the decoded frames are not needed."""
MEASURED = 100
"""Number of windows during which memory is measured."""
SPLIT_ATTENTION = "VLLM_CPU_ATTN_SPLIT_KV"
"""Environment variable that our engines set to 0: see ``ENVIRONMENT``."""
BLOCK = 32
"""Number of tokens in a block of the prefix cache."""
GENERATION = SamplingParams(temperature=2.0, top_p=1.0, max_output_tokens=128)
"""Free sampling, so that answers differ in length as captions do: mostly 8 to 15 tokens, and sometimes far more."""
EMPTY = "empty_answer"
"""Error of a window whose answer has no text. It affects few of the short windows, and up to one in nine of the long
ones. The reference requests stage 2 for these too."""
GRAPH = built_in("general")
STAGE1, STAGE2 = GRAPH.stages
RECIPE = Recipe(
    # 12 to 16 tokens for two frames, at 5 frames a second for 4 to 12 s: 120 to 480 visual tokens for a window.
    variant=replace(SAMPLE, pixels=replace(SAMPLE.pixels, total_pixels=2 * 3000 * 28**2), max_model_len=6144),
    frames=FrameSampling(fps=5.0),
    graph=GRAPH,
    generation=GENERATION,
    regenerations=0,
)
LARGE = Recipe(
    # 64 tokens for two frames, at 8 frames a second for 9 to 12 s: at least 2,000 visual tokens for a window.
    variant=replace(
        RECIPE.variant,
        pixels=PixelLimits(min_pixels=64 * 28**2, max_pixels=72 * 28**2, total_pixels=2 * 4000 * 28**2),
    ),
    frames=FrameSampling(fps=8.0),
    graph=GRAPH,
    generation=GENERATION,
    regenerations=0,
)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-windows", type=int, default=2000, help="0 skips the measurement of memory")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Root.open(folder)
        publish(root, RECIPE.variant, Path(folder) / "cache")
        model = ensure_local(root, RECIPE.variant, Path(folder) / "cache")
        clips = make_clips(options.windows)
        figures = asyncio.run(measure_speed(model, clips, options.rounds))
        figures |= asyncio.run(measure_large(model, clips))
        if options.memory_windows:
            figures |= asyncio.run(measure_memory(model, clips, options.memory_windows))
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


# --- windows


def make_clips(count: int) -> list[tuple[SampleClip, bytes]]:
    """Clips of one window each, of 4 to 12 s, with their files."""
    clips = []
    for number in range(count):
        clip = random_clip(60_000_000 + number, shortest=(112, 240))
        clips.append(replace(clip, fps=FPS, crf=28, frames=4 * FPS + number * 37 % (8 * FPS + 1)))
    with ProcessPoolExecutor() as pool:
        return list(zip(clips, pool.map(encode, clips, chunksize=8), strict=True))


def new_jobs(clips: Sequence[tuple[SampleClip, bytes]], count: int | None = None) -> list[WindowJob]:
    """A job for each clip, or ``count`` jobs over repeated clips, with ids that are new to every engine."""
    jobs = []
    for number in range(count or len(clips)):
        clip, data = clips[number % len(clips)]
        row = ManifestRow(
            clip_key=f"{number}{clip.suffix}",
            window_index=0,
            window_id=uuid4().hex,
            content_tag=ContentTag(data).hexdigest(),
            bytes=len(data),
            status=Status.OK,
            width=clip.width,
            height=clip.height,
            start_frame=0,
            end_frame=clip.frames,
            start_seconds=0.0,
            end_seconds=clip.frames / clip.fps,
        )
        jobs.append(WindowJob(row, lambda data=data: [data], GRAPH.stages, number=number))  # type: ignore[misc]
    return jobs


class PredecodedFrames:
    """A decoder that returns frames which were decoded beforehand."""

    def __init__(self, by_clip: dict[str, Frames]) -> None:
        self.by_clip = by_clip

    async def frames(self, job: WindowJob, grid: FrameGrid) -> Frames:
        """Frames of a job's clip."""
        found = self.by_clip[job.window.clip_key]
        assert found.pixels.shape[:3] == (grid.frames, grid.height, grid.width)
        return found

    @classmethod
    async def of(cls, supervisor: EngineSupervisor, recipe: Recipe, jobs: Sequence[WindowJob]) -> PredecodedFrames:
        """Decode the windows of jobs."""
        with SandboxDecoder(SANDBOX) as decoder:
            captioner = Captioner(supervisor, recipe, decoder)
            for job in jobs:
                await captioner.plan(job)
            frames = await asyncio.gather(*(decoder.frames(job, job.whole) for job in jobs))
        return cls({job.window.clip_key: found for job, found in zip(jobs, frames, strict=True)})

    def copies(self, rng: np.random.Generator) -> list[Frames]:
        """Copies with another first pixel, so that no engine has cached them."""
        copies = []
        for frames in self.by_clip.values():
            pixels = frames.pixels.copy()
            pixels[0, 0, 0] = rng.integers(0, 255, 3)
            copies.append(replace(frames, pixels=pixels))
        return copies


# --- arms


async def ours(
    supervisor: EngineSupervisor, recipe: Recipe, decoder: Decoder, jobs: Sequence[WindowJob]
) -> list[WindowJob]:
    """Caption jobs with this project's streaming, and return those with captions."""
    results: list[WindowJob] = []

    async def stream() -> AsyncIterator[WindowJob]:
        for job in jobs:
            yield job

    async def keep(result: WindowJob) -> None:
        assert result.row(STAGE2) is not None
        error = result.row(STAGE1).error_kind or result.row(STAGE2).error_kind
        assert error in (None, EMPTY), result.row(STAGE1).error or result.row(STAGE2).error
        if error is None:
            results.append(result)

    await caption(supervisor, recipe, decoder, stream(), keep)
    assert len(results) >= 0.8 * len(jobs), f"{len(jobs) - len(results)} answers of {len(jobs)} are empty"
    return results


@asynccontextmanager
async def plain_engine(model: Path, recipe: Recipe, config: EngineConfig) -> AsyncIterator[Any]:
    """An engine that vLLM builds from our arguments, without our changes and with its own setting of attention."""
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    os.environ[SPLIT_ATTENTION] = "1"
    llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_arguments(model, recipe, config)))
    try:
        yield llm
    finally:
        llm.shutdown()


async def reference(llm: Any, render: Callable[[str], str], videos: Sequence[Frames], dtype: type) -> None:
    """Caption videos with NeMo Curator's scheduling: stage 1 of a chunk, a drain, stage 2 of the chunk, a drain."""
    import vllm

    sampling = vllm.SamplingParams(
        temperature=GENERATION.temperature,
        repetition_penalty=GENERATION.repetition_penalty,
        max_tokens=GENERATION.max_output_tokens,
    )

    async def complete(video: Frames, instruction: str) -> str:
        prompt = {
            "prompt": render(instruction),
            "multi_modal_data": {"video": [(video.pixels.astype(dtype), video_metadata(video))]},
        }
        final: Any = None
        async for output in llm.generate(prompt, sampling, uuid4().hex):
            final = output
        return str(final.outputs[0].text)

    for first in range(0, len(videos), CHUNK):
        chunk = videos[first : first + CHUNK]
        captions = await asyncio.gather(*(complete(video, STAGE1.prompt) for video in chunk))
        instructions = [STAGE2.instruction({STAGE1.name: text}) for text in captions]
        await asyncio.gather(*map(complete, chunk, instructions))


# --- measurements


async def measure_speed(model: Path, clips: Sequence[tuple[SampleClip, bytes]], rounds: int) -> dict[str, float]:
    """Ratios of the arms' durations, which take turns after a warm-up round."""
    config = EngineConfig(engine_args={"max_model_len": RECIPE.variant.max_model_len})
    rng = np.random.default_rng(0)
    async with (
        EngineSupervisor(lambda: start_engine(model, RECIPE, config)) as supervisor,
        plain_engine(model, RECIPE, config) as plain,
    ):
        shared = supervisor.engine._llm
        predecoded = await PredecodedFrames.of(supervisor, RECIPE, new_jobs(clips))
        seconds: dict[str, list[float]] = {"f32": [], "u8": [], "shared": [], "ready": [], "decoding": []}
        rows: list[WindowJob] = []
        for turn in range(rounds + 1):
            some = clips[:32] if turn == 0 else clips
            for arm, durations in seconds.items():
                jobs = new_jobs(some)
                videos = predecoded.copies(rng)[: len(some)]
                begun = time.monotonic()
                if arm in ("f32", "u8", "shared"):
                    llm = shared if arm == "shared" else plain
                    await reference(llm, supervisor.engine.render, videos, np.float32 if arm == "f32" else np.uint8)
                elif arm == "ready":
                    rows = await ours(supervisor, RECIPE, predecoded, jobs)
                else:
                    with SandboxDecoder(SANDBOX) as decoder:
                        rows = await ours(supervisor, RECIPE, decoder, jobs)
                if turn:
                    durations.append(time.monotonic() - begun)
                    empty = f", {len(some) - len(rows)} empty" if arm in ("ready", "decoding") else ""
                    print(f"round {turn}, {arm}: {len(some) / durations[-1]:.1f} windows/s{empty}", flush=True)
        resent = supervisor.resent
        of_cacheable = cached_of_cacheable(supervisor.engine, RECIPE, rows)
    print(f"{resent} videos were sent again", flush=True)

    def ratio(slow: str, fast: str) -> float:
        return median(one / two for one, two in zip(seconds[slow], seconds[fast], strict=True))

    return {
        "speedup_f32": ratio("f32", "ready"),
        "speedup_u8": ratio("u8", "ready"),
        "speedup_u8_shared": ratio("shared", "ready"),
        "stage2_cached_of_cacheable": of_cacheable,
        "throughput_vs_predecoded": ratio("ready", "decoding"),
    }


def cached_of_cacheable(engine: CaptionEngine, recipe: Recipe, jobs: Sequence[WindowJob]) -> float:
    """Cached tokens of all stages but the first, over those in whole blocks of the prefix that all prompts share."""
    head = engine.text_tokens(engine.render("").split("<|vision_end|>")[0] + "<|vision_end|>")
    cached = cacheable = 0
    for job in jobs:
        for stage in recipe.stages[1:]:
            row = job.row(stage)
            instruction = recipe.instruction(stage, job.window, job.texts(stage) or {})
            text = engine.text_tokens(engine.render(instruction))
            whole_blocks = (head + (row.prompt_tokens or 0) - text) // BLOCK * BLOCK
            cacheable += whole_blocks
            cached += min(row.cached_tokens or 0, whole_blocks)  # two instructions may begin with the same words
    return cached / cacheable


async def measure_large(model: Path, clips: Sequence[tuple[SampleClip, bytes]]) -> dict[str, float]:
    """Cached share of all stage-2 prompt tokens, on windows of at least 2,000 tokens."""
    long = [(clip, data) for clip, data in clips[:48] if clip.frames / clip.fps >= 9]
    # A step of the engine must have room for a window's video.
    config = EngineConfig(engine_args={"max_model_len": LARGE.variant.max_model_len, "max_num_batched_tokens": 6144})
    async with EngineSupervisor(lambda: start_engine(model, LARGE, config)) as supervisor:
        with SandboxDecoder(SANDBOX) as decoder:
            rows = await ours(supervisor, LARGE, decoder, new_jobs(long))
    prompts = [row.row(STAGE2).prompt_tokens or 0 for row in rows]
    cached = [row.row(STAGE2).cached_tokens or 0 for row in rows]
    assert min(prompts) >= 2000, prompts
    return {"stage2_cached_fraction": sum(cached) / sum(prompts)}


async def measure_memory(model: Path, clips: Sequence[tuple[SampleClip, bytes]], windows: int) -> dict[str, float]:
    """Proportional set size of all processes, in the last 100 of 200 and of ``windows`` windows on one engine.

    The figures are medians, because the size varies by hundreds of MB with the engine's steps. The cache of videos is
    so small that it is full before the first measurement, so that its growth does not count.
    """
    config = EngineConfig(processor_cache_gb=0.0625, engine_args={"max_model_len": RECIPE.variant.max_model_len})
    figures = {}
    async with EngineSupervisor(lambda: start_engine(model, RECIPE, config)) as supervisor:
        done = 0
        for target in (200, windows):
            with SandboxDecoder(SANDBOX) as decoder:
                await ours(supervisor, RECIPE, decoder, new_jobs(clips, target - MEASURED - done))
                measuring = asyncio.create_task(sample_pss_mb(stop := asyncio.Event()))
                await ours(supervisor, RECIPE, decoder, new_jobs(clips, MEASURED))
                stop.set()
            done = target
            samples = await measuring
            figures[f"pss_mb_{target}"] = median(samples)
            print(f"after {target} windows: {median(samples):.0f} MB, maximum {max(samples):.0f} MB", flush=True)
    return figures


async def sample_pss_mb(stop: asyncio.Event) -> list[float]:
    """Proportional set size in MB, twice a second until ``stop``."""
    samples = []
    while not stop.is_set():
        samples.append(await asyncio.to_thread(pss_mb))
        await asyncio.sleep(0.5)
    return samples


def pss_mb() -> float:
    """Proportional set size of this process and its descendants, in MB."""
    me = psutil.Process()
    return float(sum(process.memory_full_info().pss for process in (me, *me.children(recursive=True)))) / 1e6


if __name__ == "__main__":
    main()
