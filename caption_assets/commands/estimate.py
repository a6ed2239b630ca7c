"""The command ``estimate``: the work that is left, and the time, GPU hours, cost and storage that it takes."""

from __future__ import annotations

import json
import math
import posixpath
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta

import dagster as dg

from caption_assets.automation.commands import open_instance
from caption_assets.automation.new_shards import present_versions
from caption_assets.automation.shard_states import ShardStates, read_states
from caption_assets.captioning.recipe import Recipe
from caption_assets.commands.rate import Rate, given_rate, measured_rate
from caption_assets.commands.selection import Need, Selection, check_shards, find_needs
from caption_assets.commands.spread import spread
from caption_assets.commands.workload import (
    STANDARD_ERRORS,
    SampledWorkload,
    Workload,
    recorded_workloads,
    sample_workload,
)
from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.project_claim import check_claim
from caption_assets.errors import number_of
from caption_assets.models.weights import format_size
from caption_assets.report.gallery import gallery_path
from caption_assets.resources import build_storage
from caption_assets.settings import Settings
from caption_assets.sources.manifest import PROBE_WORKERS
from caption_assets.sources.shard import list_shards, refuse_loose_videos
from caption_assets.store.root import Root
from caption_assets.store.tables import CLIP_MANIFEST, table_path
from caption_assets.workers.sandbox import Sandbox

MEASURED_SHARDS = 4
"""Number of captioned shards whose files are measured."""


@dataclass(frozen=True, slots=True)
class Range:
    """An estimate and its range."""

    value: float
    low: float
    high: float

    def __mul__(self, factor: float) -> Range:
        return Range(self.value * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True, slots=True)
class Estimate:
    """The work that is left."""

    shards: int
    """Number of shards that need a run."""
    shards_in_source: int
    shards_sampled: int
    """Number of shards without a manifest of which clips were probed."""
    shards_without_manifest: int
    clips_sampled: int
    windows: Range
    video_hours: float
    visual_tokens: int
    """Predicted number."""
    rate: float | None
    """Windows per second for the missing stages; None if it is not known."""
    rate_origin: str
    engine_starts: int
    engine_start_seconds: float
    engine_hours: Range | None
    """Time of one engine after the other, starts included."""
    gpus: int
    gpu_hours: Range | None
    """None if the rate is not known, or the model runs on the CPU."""
    cost: Range | None
    """In the currency of CAPTION_GPU_HOUR_PRICE; None without it."""
    output_bytes: int | None
    """Size of tables and galleries; None if no shard is captioned yet."""

    def to_json(self) -> str:
        """The estimate as one line of JSON."""
        return json.dumps(asdict(self))


def estimate(settings: Settings, shards: Sequence[str], *, again: bool, rate: float | None) -> Estimate:
    """Estimate the work that is left for the project of the settings.

    Args:
        settings: the settings.
        shards: names of shards; all if empty.
        again: whether shards count that are captioned already.
        rate: windows per second with all stages; None for the rate of earlier runs.

    Raises:
        UnknownName: if the source has no such shard.
        CaptionAssetsError: if source, root or instance cannot be used.
    """
    project, storage = Project.of(settings), build_storage(settings)
    with open_instance() as instance:
        check_claim(instance, project, storage)
        source, root = storage.source(), storage.root_to_read()
        listing = list_shards(source)
        refuse_loose_videos(source, listing)
        found = {shard.key: shard for shard in listing.shards}
        check_shards(shards, found)
        states = read_states(instance, project, root)
        content = present_versions(source, [found[shard] for shard in shards or found])
        tables = _tables(instance, settings, states, shards or list(found), content, again=again)
        recipe = settings.caption_recipe
        events = {
            shard: states.records[CLIP_MANIFEST][shard].event
            for shard, needed in tables.items()
            if CLIP_MANIFEST not in needed
        }
        counted = recorded_workloads(instance, project, root, recipe, events)
        unprobed = [found[shard] for shard in tables if shard not in events]
        with Sandbox(settings.decode, settings.decode_workers or PROBE_WORKERS) as sandbox:
            sampled = sample_workload(sandbox, source, unprobed, settings.windowing, recipe)
        codes = {stage.name: recipe.version(stage) for stage in recipe.stages}
        known = measured_rate(instance, states, codes) if rate is None else given_rate(rate, codes)
        return _combine(
            settings, len(found), tables, counted, sampled, known, _bytes_per_window(instance, states, root, recipe)
        )


def _tables(
    instance: dg.DagsterInstance,
    settings: Settings,
    states: ShardStates,
    shards: Sequence[str],
    content: Mapping[str, str],
    *,
    again: bool,
) -> dict[str, Collection[str]]:
    """The tables to make, for each shard that needs a run: also those with another content than the observed one."""
    needs, selection = find_needs(instance, settings, states), Selection(states=list(Need))
    registered, tables = set(states.order), states.project.tables
    found: dict[str, Collection[str]] = {}
    for shard in shards:
        if shard not in registered or content.get(shard, states.content[shard]) != states.content[shard]:
            found[shard] = tables
        elif again:
            found[shard] = tables[1:] if shard in states.manifests else tables
        elif needed := selection.tables(shard, states, needs):
            found[shard] = needed
    return found


def _combine(
    settings: Settings,
    in_source: int,
    tables: Mapping[str, Collection[str]],
    counted: Mapping[str, Workload],
    sampled: SampledWorkload,
    rate: Rate | None,
    bytes_per_window: float | None,
) -> Estimate:
    project = Project.of(settings)
    workload = sum(counted.values(), sampled.workload)
    margin = min(STANDARD_ERRORS * sampled.error, sampled.workload.windows)
    windows = Range(workload.windows, workload.windows - margin, workload.windows + margin)
    models = len(settings.caption_recipe.steps)
    starts = math.ceil(len(tables) / settings.shards_per_run) * models
    hours = None
    if rate is not None:
        seconds = sampled.workload.windows * rate.window_seconds(list(project.inputs))
        for shard, work in counted.items():
            seconds += work.windows * rate.window_seconds([stage for stage in project.inputs if stage in tables[shard]])
        hours = _engine_hours(seconds, windows, rate, starts)
    gpu_hours = hours * settings.gpus if hours and settings.gpus else None
    price = settings.gpu_hour_price
    captioning = hours.value * 3600 - starts * rate.start_seconds if hours and rate else 0.0
    return Estimate(
        shards=len(tables),
        shards_in_source=in_source,
        shards_sampled=sampled.shards,
        shards_without_manifest=len(tables) - len(counted),
        clips_sampled=sampled.clips,
        windows=windows,
        video_hours=workload.hours,
        visual_tokens=round(workload.tokens),
        rate=workload.windows / captioning if captioning else None,
        rate_origin=rate.origin if rate else "not known: no run of this project has captioned a window yet",
        engine_starts=starts,
        engine_start_seconds=rate.start_seconds if rate else 0.0,
        engine_hours=hours,
        gpus=settings.gpus,
        gpu_hours=gpu_hours,
        cost=gpu_hours * price if gpu_hours and price is not None else None,
        output_bytes=None if bytes_per_window is None else round(workload.windows * bytes_per_window),
    )


def _engine_hours(seconds: float, windows: Range, rate: Rate, starts: int) -> Range:
    """Engine time: that of the windows, within the ranges of their number and of the rate, and that of the starts."""
    low, high = (bound / windows.value if windows.value else 1.0 for bound in (windows.low, windows.high))
    started = starts * rate.start_seconds
    return Range(
        (seconds + started) / 3600,
        (seconds * low * rate.lowest + started) / 3600,
        (seconds * high * rate.highest + started) / 3600,
    )


def _bytes_per_window(instance: dg.DagsterInstance, states: ShardStates, root: Root, recipe: Recipe) -> float | None:
    """Bytes of tables and gallery for a window, measured on a few captioned shards; None if there are none."""
    measured = spread(sorted(states.captioned), MEASURED_SHARDS)
    events = {shard: states.records[CLIP_MANIFEST][shard].event for shard in measured}
    windows = sum(work.windows for work in recorded_workloads(instance, states.project, root, recipe, events).values())
    files = [gallery_path(shard) for shard in measured]
    files += [table_path(table, shard) for table in states.project.tables for shard in measured]
    size = sum(sum(root.sizes(posixpath.dirname(file)).values()) for file in files)
    return size / windows if windows else None


def table(found: Estimate) -> Iterator[tuple[str, str]]:
    """The estimate for people: names and values."""
    if not found.shards:
        yield "left", f"nothing: all {found.shards_in_source} shards are up to date"
        return
    counted = found.shards - found.shards_without_manifest
    yield "shards", f"{found.shards} of {found.shards_in_source} need a run; {counted} of them have a manifest"
    sample = (
        f", from {found.clips_sampled} clips of {number_of(found.shards_sampled, 'shard')}"
        if found.clips_sampled
        else ""
    )
    yield "windows", f"{_with_range(found.windows, _count)}{sample}"
    yield "video", _duration(found.video_hours)
    yield "visual tokens", f"{found.visual_tokens:,}, predicted"
    yield "rate", f"{found.rate:,.3g} windows/s, {found.rate_origin}" if found.rate else found.rate_origin
    if found.engine_hours is None:
        yield "engine time", "not known: measure a rate with `caption-assets bench`, and give it as --rate"
    else:
        starts = number_of(found.engine_starts, "start")
        seconds = f" of {found.engine_start_seconds:.0f} s" if found.engine_start_seconds else " (not counted)"
        yield "engine time", f"{_with_range(found.engine_hours, _duration)}, with {starts}{seconds}"
    if not found.gpus:
        yield "GPU hours", "none: the model runs on the CPU"
    elif found.gpu_hours:
        yield "GPU hours", f"{_with_range(found.gpu_hours, _decimal)}, with {number_of(found.gpus, 'GPU')}"
        no_price = "not known: set CAPTION_GPU_HOUR_PRICE"
        yield "cost", _with_range(found.cost, _decimal) if found.cost else no_price
    size = "not known before the first captions" if found.output_bytes is None else format_size(found.output_bytes)
    yield "output", f"{size} of tables and galleries" if found.output_bytes is not None else size


def _with_range(found: Range, form: Callable[[float], str]) -> str:
    low, value, high = (form(bound) for bound in (found.low, found.value, found.high))
    return value if low == high else f"{value} ({low} to {high})"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _decimal(value: float) -> str:
    return f"{value:,.2f}" if value >= 0.1 else f"{value:.2g}"


def _duration(hours: float) -> str:
    return str(timedelta(seconds=round(hours * 3600)))
