"""The workload that is left: the windows of shards, counted in their manifests, or estimated from a sample of clips."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean, variance
from typing import Self

import dagster as dg

from caption_assets.automation.records import fetch_by_id
from caption_assets.captioning.recipe import Recipe
from caption_assets.commands.spread import spread
from caption_assets.dagster_lib.project import Project
from caption_assets.sources.listing import list_clips
from caption_assets.sources.manifest import probe_listed
from caption_assets.sources.shard import Shard, ShardError
from caption_assets.store.root import Root
from caption_assets.store.tables import ManifestRow, Status, read_manifest
from caption_assets.video.window import Windowing
from caption_assets.workers.sandbox import Sandbox

SAMPLED_SHARDS = 8
"""Maximum number of shards of which clips are probed."""
SAMPLED_CLIPS = 16
"""Maximum number of clips that are probed in each of them."""
STANDARD_ERRORS = 2.0
"""Half the width of a range, in standard errors: it contains the true value in about 95 % of cases."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The windows of one or more shards."""

    windows: float = 0.0
    tokens: float = 0.0
    """Predicted number of visual tokens."""
    hours: float = 0.0
    """Length of the clips."""

    def __add__(self, other: Workload) -> Workload:
        return Workload(self.windows + other.windows, self.tokens + other.tokens, self.hours + other.hours)

    def __mul__(self, factor: float) -> Workload:
        return Workload(self.windows * factor, self.tokens * factor, self.hours * factor)

    @classmethod
    def of_rows(cls, rows: Iterable[ManifestRow], recipe: Recipe) -> Self:
        """The workload of rows of manifests."""
        readable = [row for row in rows if row.status is Status.OK]
        seconds = {row.clip_key: row.clip_seconds or 0.0 for row in readable}
        tokens = sum(map(recipe.predicted_tokens, readable))
        return cls(len(readable), tokens, sum(seconds.values()) / 3600)


@dataclass(frozen=True, slots=True)
class SampledWorkload:
    """The workload of shards without manifests, estimated from some of their clips."""

    workload: Workload = Workload()
    error: float = 0.0
    """Standard error of the number of windows."""
    shards: int = 0
    """Number of sampled shards."""
    clips: int = 0
    """Number of probed clips."""


def recorded_workloads(
    instance: dg.DagsterInstance, project: Project, root: Root, recipe: Recipe, events: Mapping[str, int]
) -> dict[str, Workload]:
    """The workloads of shards with a manifest.

    They come from the events that recorded the manifests. A manifest whose event lacks the counts is read.

    Args:
        instance: the Dagster instance.
        project: the project.
        root: root of the manifests.
        recipe: predicts the tokens of manifests that are read.
        events: storage ids of the events, by shard.
    """
    found: dict[str, Workload] = {}
    for record in chain.from_iterable(fetch_by_id(instance, project.manifest, list(events.values()))):
        metadata = (record.asset_materialization and record.asset_materialization.metadata) or {}
        counts = [number(metadata, name) for name in ("rows_ok", "predicted_visual_tokens", "hours")]
        if all(count is not None for count in counts):
            found[str(record.partition_key)] = Workload(*(count or 0.0 for count in counts))
    for shard in events.keys() - found.keys():
        found[shard] = Workload.of_rows(read_manifest(root, shard), recipe)
    return found


def number(metadata: Mapping[str, dg.MetadataValue], name: str) -> float | None:
    """A number in an event's metadata; None if it has none that is finite and not negative: the UI takes any value."""
    value = metadata.get(name)
    found = value.value if isinstance(value, dg.IntMetadataValue | dg.FloatMetadataValue) else None
    return float(found) if found is not None and math.isfinite(found) and found >= 0 else None


def sample_workload(
    sandbox: Sandbox, source: Root, shards: Sequence[Shard], windowing: Windowing, recipe: Recipe
) -> SampledWorkload:
    """Estimate the workload of shards from a sample of their clips.

    Shards and clips are sampled at equal distances. The standard error is that of two-stage sampling (Cochran,
    Sampling Techniques, section 10.3).

    A shard that cannot be listed counts as empty: its run would fail.
    """
    totals: list[Workload] = []
    within, probed = 0.0, 0
    for shard in spread(shards, SAMPLED_SHARDS):
        try:
            clips = list(list_clips(source, shard))
        except ShardError:
            clips = []
        works = [
            Workload.of_rows(clip.rows, recipe)
            for clip in probe_listed(sandbox, spread(clips, SAMPLED_CLIPS), windowing)
        ]
        totals.append(sum(works, Workload()) * (len(clips) / max(len(works), 1)))
        within += _squared_error([work.windows for work in works], len(clips))
        probed += len(works)
    if not totals:
        return SampledWorkload()
    factor = len(shards) / len(totals)
    error = math.sqrt(_squared_error([total.windows for total in totals], len(shards)) + factor * within)
    return SampledWorkload(sum(totals, Workload()) * factor, error, len(totals), probed)


def _squared_error(values: Sequence[float], population: int) -> float:
    """Squared standard error of a population's total, estimated from a sample; 0 if the sample is all of it."""
    if len(values) >= population:
        return 0.0
    # The spread of a single value is unknown: its own size is assumed.
    spread_of_values = variance(values) if len(values) > 1 else fmean(values) ** 2
    return population**2 * (1 - len(values) / population) * spread_of_values / len(values)
