"""The command ``bench``: the captioning rate of this machine, and what limits it. It needs no Dagster."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from caption_assets.captioning.captioner import Captioner, caption
from caption_assets.captioning.decoding import SandboxDecoder
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.captioning.window_job import WindowJob
from caption_assets.errors import CaptionAssetsError
from caption_assets.library.engine import open_engine
from caption_assets.sample.clips import encode, random_clip
from caption_assets.settings import Settings
from caption_assets.sources.clip import Clip
from caption_assets.sources.files import find_clips
from caption_assets.sources.manifest import clip_pieces, probe_listed
from caption_assets.store.access import STANDARD, Access
from caption_assets.store.root import Root
from caption_assets.store.tables import ManifestRow, Status, window_id
from caption_assets.video.decode_in_worker import load_decoder
from caption_assets.video.window import Windowing
from caption_assets.workers.sandbox import Sandbox

SAMPLE_CLIPS = 8
"""Number of different sample clips; encoding one for a large model takes a second or two."""
SAMPLE_SIDES, SAMPLE_SECONDS = (160, 360), 6.0
"""Shorter side, in pixels, and maximum length of clips for the sample model, as in the sample shards."""
LARGE_SIDES, LARGE_SECONDS = (480, 720), 25.6
"""The same for all other models, which are made for clips of this size."""
WARM_UP = 4
"""Number of windows captioned before the measurement: the engine's first steps allocate memory and compile."""
DECODING_LIMIT = 0.8
"""Minimum share of the decoders' capacity in use at which decoding limits captioning on a GPU. Where the engine is the
limit, decoders wait for it."""

Report = Callable[[str], None]
"""Receives messages about the progress."""


class NoWindows(CaptionAssetsError):
    """Files without a window that can be captioned."""


@dataclass(frozen=True, slots=True)
class BenchResult:
    """The rates of one measurement. Seconds are wall time."""

    model: str
    recipe: str
    stages: int
    """Number of stages of the video model. The stages of language models are not measured."""
    windows: int
    clips: int
    """Number of different clips. Their windows are repeated until there are enough."""
    failed: int
    """Number of windows without all captions."""
    error: str | None
    """The first error of these windows."""
    engine_start_seconds: float
    seconds: float
    """Time to caption all windows, with the engine running."""
    windows_per_second: float
    video_seconds_per_second: float
    """Seconds of video captioned in a second."""
    prompt_tokens_per_second: float
    """Tokens of video and text, those from the prefix cache included."""
    output_tokens_per_second: float
    cached_share: float
    """Share of the prompt tokens that came from the prefix cache."""
    decode_windows_per_second: float
    """Rate of decoding alone, measured beforehand while the engine was idle."""
    decode_workers: int
    uses_gpu: bool
    """Whether the engine runs on a GPU. On the CPU, it shares the cores with the decoders."""

    @property
    def decode_load(self) -> float:
        """Share of the decoders' capacity that captioning uses. On the CPU, it is their share of the cores' time."""
        return self.windows_per_second / self.decode_windows_per_second

    @property
    def limit(self) -> str:
        """What limits the rate: ``decoding`` or ``engine``; on the CPU, what takes more of the cores' time."""
        return "decoding" if self.decode_load > (DECODING_LIMIT if self.uses_gpu else 0.5) else "engine"

    def to_json(self) -> str:
        """The result as one line of JSON."""
        values = {name: _rounded(value) for name, value in asdict(self).items()}
        return json.dumps({**values, "decode_load": _rounded(self.decode_load), "limit": self.limit})


def bench(settings: Settings, files: Sequence[str], windows: int, report: Report) -> BenchResult:
    """Measure the captioning rate of this machine, with the settings' model and recipe.

    Args:
        settings: the settings.
        files: video files, folders of them or URLs, as for ``caption_assets.caption``; without any, sample clips.
        windows: number of windows to caption; those of the files are repeated as needed.
        report: receives messages about the progress.

    Raises:
        NoWindows: if no file has a window that can be captioned.
        EngineError: if the engine does not start, or crashes too often.
        WeightsError: if the model cannot be downloaded.
    """
    access = settings.storage.source_access
    with Sandbox(settings.decode, settings.decode_workers) as sandbox, TemporaryDirectory() as folder:
        paths = files or _sample_clips(Path(folder), settings, report)
        rows = readable_windows(sandbox, find_clips(paths, access), settings.windowing, report)
        return asyncio.run(_bench(settings, sandbox, rows, windows, report))


async def _bench(
    settings: Settings, sandbox: Sandbox, rows: Sequence[ManifestRow], windows: int, report: Report
) -> BenchResult:
    recipe = settings.caption_recipe
    report(f"starting the engine for {recipe.variant.hub_id}")
    started = time.monotonic()
    sandbox.start(load_decoder)
    async with open_engine(settings, recipe) as supervisor:
        start = time.monotonic() - started
        result = await measure(supervisor, recipe, sandbox, rows, windows, report, settings.storage.source_access)
        return replace(result, engine_start_seconds=start)


async def measure(
    supervisor: EngineSupervisor,
    recipe: Recipe,
    sandbox: Sandbox,
    rows: Sequence[ManifestRow],
    windows: int,
    report: Report,
    access: Access = STANDARD,
) -> BenchResult:
    """Measure decoding alone, then captioning, on a running engine.

    Args:
        supervisor: runs the engine.
        recipe: the engine's recipe.
        sandbox: decodes the windows.
        rows: windows of clips; they are repeated as needed.
        windows: number of windows to measure.
        report: receives messages about the progress.
        access: access to clips in object storage.
    """
    with SandboxDecoder(sandbox) as decoder:
        await _caption(supervisor, recipe, decoder, _jobs(recipe, access, rows, WARM_UP))
        report(f"decoding {windows} windows")
        decode_seconds = await _decode(supervisor, recipe, decoder, _jobs(recipe, access, rows, windows))
        report(f"captioning {windows} windows")
        jobs = _jobs(recipe, access, rows, windows)
        seconds = await _caption(supervisor, recipe, decoder, jobs)
    captions = [job.row(stage) for job in jobs for stage in job.stages]
    prompt, cached, output = (
        sum(tokens or 0 for tokens in counts)
        for counts in zip(*((row.prompt_tokens, row.cached_tokens, row.output_tokens) for row in captions), strict=True)
    )
    video = sum((job.window.end_seconds or 0.0) - (job.window.start_seconds or 0.0) for job in jobs)
    return BenchResult(
        model=recipe.variant.hub_id,
        recipe=recipe.graph.name,
        stages=len(recipe.own_stages),
        windows=windows,
        clips=len({row.clip_key for row in rows}),
        failed=sum(not job.ok for job in jobs),
        error=next((row.error for row in captions if row.error), None),
        engine_start_seconds=0.0,
        seconds=seconds,
        windows_per_second=windows / seconds,
        video_seconds_per_second=video / seconds,
        prompt_tokens_per_second=prompt / seconds,
        output_tokens_per_second=output / seconds,
        cached_share=cached / prompt if prompt else 0.0,
        decode_windows_per_second=windows / decode_seconds,
        decode_workers=sandbox.workers,
        uses_gpu=recipe.variant.gpus > 0,
    )


def table(result: BenchResult) -> list[tuple[str, str]]:
    """The result for people: names and values."""
    stages = f"{result.stages} stage{'s' if result.stages > 1 else ''}"
    decoding = f"{_rate(result.decode_windows_per_second)} windows/s with {result.decode_workers} workers"
    lines = [
        ("model", result.model),
        ("recipe", f"{result.recipe}, {stages} of this model"),
        ("engine start", f"{result.engine_start_seconds:.1f} s"),
        ("captioning", f"{_rate(result.windows_per_second)} windows/s: {result.windows} in {result.seconds:.1f} s"),
        ("video", f"{_rate(result.video_seconds_per_second)} s of video per second"),
        ("prompt tokens", f"{result.prompt_tokens_per_second:,.0f}/s, {result.cached_share:.0%} from the prefix cache"),
        ("output tokens", f"{result.output_tokens_per_second:,.0f}/s"),
        ("decoding alone", f"{decoding} on {_cores()} cores"),
        ("limit", _limit(result)),
    ]
    if result.failed:
        lines.append(("failed", f"{result.failed} of {result.windows} windows; the first: {result.error}"))
    return lines


def _limit(result: BenchResult) -> str:
    """What limits the rate, why, and what helps."""
    if not result.uses_gpu:
        other = max(1 - result.decode_load, 0.0)
        return f"the cores: decoding takes {result.decode_load:.0%} of their time, the engine {other:.0%}"
    if result.limit == "engine":
        return f"the engine: it uses {result.decode_load:.0%} of what the decoders can do"
    spare = result.decode_workers < _cores()
    remedy = f"raise CAPTION_DECODE_WORKERS, up to {_cores()}" if spare else "use more cores for each GPU"
    return f"decoding: the engine uses {result.decode_load:.0%} of what the decoders can do; {remedy}"


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def readable_windows(
    sandbox: Sandbox, clips: Iterable[Clip], windowing: Windowing, report: Report
) -> list[ManifestRow]:
    """The windows of clips; unreadable clips are reported.

    Raises:
        NoWindows: if there are none.
    """
    rows = [row for clip in probe_listed(sandbox, clips, windowing) for row in clip.rows]
    problems = [f"{row.clip_key}: {row.error}" for row in rows if row.status is Status.FAILED]
    for problem in problems:
        report(f"skipped {problem}")
    readable = [row for row in rows if row.status is Status.OK]
    if not readable:
        raise NoWindows(f"no file can be captioned; the first: {problems[0]}")
    return readable


def _sample_clips(folder: Path, settings: Settings, report: Report) -> list[str]:
    """Write sample clips of one window."""
    is_sample = settings.variant.bundled
    sides, seconds = (SAMPLE_SIDES, SAMPLE_SECONDS) if is_sample else (LARGE_SIDES, LARGE_SECONDS)
    report(f"making {SAMPLE_CLIPS} sample clips; give files of your own for a rate that applies to them")
    paths = []
    for seed in range(SAMPLE_CLIPS):
        clip = random_clip(seed, shortest=sides, longest_seconds=seconds)
        path = folder / f"{seed}{clip.suffix}"
        path.write_bytes(encode(clip))
        paths.append(str(path))
    return paths


def _jobs(recipe: Recipe, access: Access, rows: Sequence[ManifestRow], count: int) -> list[WindowJob]:
    """Jobs for ``count`` windows. The engine's caches know none of them: each has a key of its own."""
    anywhere = Root.open("/", access)  # the rows have whole URLs
    jobs: list[WindowJob] = []
    measurement = uuid4().hex
    for number, row in enumerate(islice(cycle(rows), count)):
        key = f"{measurement}-{number // len(rows)}-{row.clip_key}"
        own = replace(row, clip_key=key, window_id=window_id(key, row.window_index, row.content_tag))
        job = WindowJob(own, partial(clip_pieces, anywhere, row), recipe.own_stages, number=number)
        job.set_previous(jobs[-1] if jobs else None)
        jobs.append(job)
    return jobs


async def _decode(
    supervisor: EngineSupervisor, recipe: Recipe, decoder: SandboxDecoder, jobs: Sequence[WindowJob]
) -> float:
    """Decode windows without captioning them; returns the seconds. Errors are reported when they are captioned."""
    captioner = Captioner(supervisor, recipe, decoder)
    for job in jobs:
        await captioner.plan(job)

    async def decode(job: WindowJob) -> None:
        with suppress(Exception):  # the frames are dropped
            await decoder.frames(job, job.whole)

    started = time.monotonic()
    await asyncio.gather(*map(decode, jobs))
    return time.monotonic() - started


async def _caption(
    supervisor: EngineSupervisor, recipe: Recipe, decoder: SandboxDecoder, jobs: Sequence[WindowJob]
) -> float:
    """Caption windows; returns the seconds."""

    async def stream() -> AsyncIterator[WindowJob]:
        for job in jobs:
            yield job

    async def ignore(job: WindowJob) -> None:
        pass

    started = time.monotonic()
    await caption(supervisor, recipe, decoder, stream(), ignore)
    return time.monotonic() - started


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _rounded(value: object) -> object:
    return round(value, 3) if isinstance(value, float) else value
