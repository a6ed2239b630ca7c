"""Benchmark of previews: CPU time of captioning with and without them, and the size and time of a preview.

    python -m benchmarks.previews [--windows 100] [--pairs 6] [--clips FOLDER]

Both arms caption the same windows in two stages with the sample model on one engine, in pairs of alternating order.
CPU time is that of this process, the engine and the decode workers. With a folder of clips, the size and encoding time
of previews of their first windows follow, for frames of 504 x 280 pixels. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from io import BytesIO
from pathlib import Path

import psutil

from benchmarks.two_stage import SANDBOX, make_clips, new_jobs, ours
from caption_assets.captioning.decoding import SandboxDecoder
from caption_assets.captioning.engine import EngineConfig, start_engine
from caption_assets.captioning.preview_store import PreviewStore
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.recipe_file import built_in
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.models.cache import ensure_local
from caption_assets.models.mirror import publish
from caption_assets.models.variants import SAMPLE
from caption_assets.sample.clips import SampleClip
from caption_assets.store.root import Root
from caption_assets.video.decode import ClipDecoder
from caption_assets.video.preview import make_preview

RECIPE = Recipe(variant=SAMPLE, graph=built_in("general"))
SIZE = 280, 504
"""Height and width of the frames of real clips, in pixels: about 180 tokens of Qwen2.5-VL for two frames."""
FRAMES = 16
ENCODINGS = 20


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--clips", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Root.open(folder)
        publish(root, RECIPE.variant, Path(folder) / "cache")
        model = ensure_local(root, RECIPE.variant, Path(folder) / "cache")
        figures = asyncio.run(measure(root, model, make_clips(options.windows), options.pairs))
    if options.clips:
        figures |= measure_clips(sorted(options.clips.glob("*.m*4")))
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


async def measure(root: Root, model: Path, clips: Sequence[tuple[SampleClip, bytes]], pairs: int) -> dict[str, float]:
    """CPU time of both arms, after a pair that is not counted, and the mean size of a preview."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    wall: dict[bool, list[float]] = {False: [], True: []}
    async with EngineSupervisor(lambda: start_engine(model, RECIPE, EngineConfig())) as supervisor:
        for pair in range(pairs + 1):
            for has_previews in (False, True) if pair % 2 else (True, False):
                before, begun = cpu_seconds(), time.monotonic()
                with (
                    PreviewStore(root, print) as previews,
                    SandboxDecoder(SANDBOX, previews.store if has_previews else None) as decoder,
                ):
                    await ours(supervisor, RECIPE, decoder, new_jobs(clips))
                if pair:
                    seconds[has_previews].append(cpu_seconds() - before)
                    wall[has_previews].append(time.monotonic() - begun)
                    print(f"pair {pair}, previews {has_previews}: {seconds[has_previews][-1]:.2f} s CPU", flush=True)
    sizes = root.sizes("gallery").values()
    ratios = [with_previews / without for with_previews, without in zip(seconds[True], seconds[False], strict=True)]
    return {
        "cpu_ms_without": 1000 * statistics.median(seconds[False]) / len(clips),
        "cpu_ms_with": 1000 * statistics.median(seconds[True]) / len(clips),
        "wall_ms_without": 1000 * statistics.median(wall[False]) / len(clips),
        "wall_ms_with": 1000 * statistics.median(wall[True]) / len(clips),
        "cpu_ratio": statistics.median(ratios),
        "preview_kb": statistics.mean(sizes) / 1e3,
    }


def cpu_seconds() -> float:
    """CPU time of this process and its descendants, which all run on between two calls."""
    process = psutil.Process()
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return float(sum(one.user + one.system for one in times))


def measure_clips(paths: Sequence[Path]) -> dict[str, float]:
    """Mean size and encoding time of a preview of real clips."""
    sizes, times = [], []
    for path in paths:
        decoder = ClipDecoder(partial(BytesIO, path.read_bytes()))
        frames = decoder.frames(0, FRAMES, FRAMES, SIZE)
        decoder.close()
        begun = time.process_time()
        for _ in range(ENCODINGS):
            preview = make_preview(frames.pixels)
        times.append((time.process_time() - begun) / ENCODINGS)
        sizes.append(len(preview.jpeg))
        print(f"{path.name}: {1000 * times[-1]:.2f} ms, {sizes[-1]:,} bytes", flush=True)
    return {"clip_preview_ms": 1000 * statistics.mean(times), "clip_preview_kb": statistics.mean(sizes) / 1e3}


if __name__ == "__main__":
    main()
