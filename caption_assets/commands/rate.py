"""The rate of captioning, measured in earlier runs of a project: seconds of the engine for each window and stage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean

import dagster as dg

from caption_assets.automation.shard_states import ShardStates
from caption_assets.commands.workload import number

MAX_EVENTS = 200
"""Maximum number of a stage's latest events that are read. Older runs may have had another machine."""

MEASUREMENTS = ("rows_new", "engine_seconds", "engine_start_seconds")
"""Metadata entries of a caption table that was made with an engine."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Seconds of one engine for a window, and their spread."""

    seconds: Mapping[str, float]
    """Seconds for a window, by stage, without the engine's start."""
    lowest: float
    """The fastest run's time, as a multiple of the mean."""
    highest: float
    """The slowest run's time, as a multiple of the mean."""
    start_seconds: float
    """Mean time of an engine's start."""
    origin: str
    """How the rate was found."""

    def window_seconds(self, stages: Collection[str]) -> float:
        """Seconds for these stages of a window. A stage that was not measured counts as the mean of the others."""
        mean = fmean(self.seconds.values())
        return sum(self.seconds.get(stage, mean) for stage in stages)


def given_rate(windows_per_second: float, stages: Collection[str]) -> Rate:
    """The rate that a person gives, for a window with all stages."""
    each = 1 / windows_per_second / len(stages)
    return Rate(dict.fromkeys(stages, each), 1.0, 1.0, 0.0, "given by --rate; its uncertainty is not known")


@dataclass
class _Run:
    """The measurements of one run."""

    rows: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Number of captioned windows, by stage."""
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Engine time, by stage."""
    starts: set[float] = field(default_factory=set)
    """Time of each engine's start. The first shard's engine time includes it."""

    @property
    def share(self) -> float:
        """Share of captioning in the engine time."""
        total = sum(self.seconds.values())
        return max(total - sum(self.starts), 0.0) / total


def measured_rate(instance: dg.DagsterInstance, states: ShardStates, codes: Mapping[str, str]) -> Rate | None:
    """The rate of the latest runs, of those with the present code versions if there are any.

    Args:
        instance: the Dagster instance.
        states: the shards of the project.
        codes: present code version of each stage.

    Returns:
        None if no run has captioned a window yet.
    """
    present = {
        stage: [
            record.event
            for record in states.records[stage].values()
            if record.versions and record.versions.code == codes[stage]
        ]
        for stage in codes
    }
    every = {stage: [record.event for record in states.records[stage].values()] for stage in codes}
    for events, origin in ((present, "this recipe and model"), (every, "another recipe or model")):
        if runs := _runs(instance, states, events):
            return _rate(runs, origin)
    return None


def _runs(instance: dg.DagsterInstance, states: ShardStates, events: Mapping[str, list[int]]) -> list[_Run]:
    """The runs that captioned windows."""
    found: defaultdict[str, _Run] = defaultdict(_Run)
    for stage, ids in events.items():
        for run_id, rows, seconds, start in _measurements(instance, states.project.key(stage), ids):
            run = found[run_id]
            run.rows[stage] += rows
            run.seconds[stage] += seconds
            run.starts.add(start)
    return [run for run in found.values() if run.share]


def _measurements(
    instance: dg.DagsterInstance, asset: dg.AssetKey, events: list[int]
) -> Iterator[tuple[str, float, float, float]]:
    """Run, new rows, engine seconds and engine start of the events that have them."""
    latest = sorted(events)[-MAX_EVENTS:]
    if not latest:
        return
    filters = dg.AssetRecordsFilter(asset, storage_ids=latest)
    for record in instance.fetch_materializations(filters, limit=len(latest)).records:
        metadata = (record.asset_materialization and record.asset_materialization.metadata) or {}
        rows, seconds, start = (number(metadata, name) for name in MEASUREMENTS)
        if rows and seconds and start is not None:
            yield record.run_id, rows, seconds, start


def _rate(runs: list[_Run], origin: str) -> Rate:
    stages = {stage for run in runs for stage in run.rows}
    seconds = {
        stage: sum(run.seconds[stage] * run.share for run in runs) / sum(run.rows[stage] for run in runs)
        for stage in stages
    }
    ratios = [
        sum(run.seconds.values()) * run.share / sum(rows * seconds[stage] for stage, rows in run.rows.items())
        for run in runs
    ]
    spread = (
        "its spread is not known"
        if len(runs) == 1
        else f"a window took {min(ratios):.2f} to {max(ratios):.2f} times the mean"
    )
    count = f"{len(runs)} run{'s' if len(runs) > 1 else ''}"
    return Rate(
        seconds,
        min(ratios),
        max(ratios),
        fmean(start for run in runs for start in run.starts),
        f"measured in {count} with {origin}; {spread}",
    )
