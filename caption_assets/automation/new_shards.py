"""The sensor that looks through the source: it registers shards, and reports those that have changed or gone."""

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from logging import Logger
from typing import Self

import dagster as dg

from caption_assets.assets.shard_index import (
    FUTURE,
    REMOVED,
    SHARD_INDEX,
    first_names,
    index_metadata,
    is_removed,
    observation,
    observed_versions,
    registration,
)
from caption_assets.automation.alerts import AlertError, Alerts
from caption_assets.automation.removals import Removals, find_removals, removal_evaluation
from caption_assets.automation.status import sensor_status
from caption_assets.dagster_lib.failures import as_dagster_failure
from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.project_claim import claim
from caption_assets.errors import CaptionAssetsError, as_project_error
from caption_assets.resources import Storage
from caption_assets.settings import Settings
from caption_assets.sources.shard import (
    CLOCK_TOLERANCE,
    Layout,
    Listing,
    Shard,
    ShardContent,
    list_shards,
    shard_content,
)
from caption_assets.store.root import Root

AssetEvent = dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation
TICK_SECONDS = 15.0
"""After which a tick looks at no more shards; the next one goes on there. Dagster ends a tick after 60."""
MOST_EVENTS = 500
"""Shards that one tick registers or reports at most: each is an event, for which SQLite takes up to 17 ms."""
READERS = 16
"""Shards that are listed at once: from object storage each takes tens of milliseconds, most of it waiting."""
SHOWN = 5
"""Shards that a tick's message names of a kind."""


def build_new_shards(settings: Settings) -> dg.SensorDefinition:
    """The sensor over the source that ``settings`` name."""
    project, alerts = Project(settings.project), Alerts(settings)

    @dg.sensor(
        name="new_shards",
        description="Registers the source's shards as partitions, and reports which have changed or gone.",
        minimum_interval_seconds=settings.sensor_interval_seconds,
        default_status=sensor_status(settings),
    )
    def new_shards(context: dg.SensorEvaluationContext, storage: Storage) -> dg.SensorResult:
        cursor = _Cursor.parse(context.cursor)
        with as_dagster_failure():
            source = storage.source()
            listing = list_shards(source)
            claim(context.instance, project, storage)
            found = _Found(settings, source, set(project.registered(context.instance)))
            found.observed = observed_versions(context.instance, project)
            last = found.look(_in_turn(listing.shards, cursor.after))
        removals = find_removals(settings, source, found.registered, found.observed, listing.keys)
        found.report_removed(removals)
        events = found.events(context.instance, project, len(listing.shards))
        is_told = bool(removals.alarm) and (cursor.alarm or _tell(alerts, removals, context.log))
        for path, reason in listing.refused.items():
            context.log.warning(f"{path} is not registered: {reason}")
        if found.future:
            context.log.warning(f"modification times in the future, in shards {first_names(found.future)}: {FUTURE}")
        return dg.SensorResult(
            skip_reason=removals.alarm or (found.message and found.message + _passed_over(listing)),
            dynamic_partitions_requests=[project.partitions.build_add_request(found.new)] if found.new else [],
            asset_events=[*events, *([removal_evaluation(project, removals)] if is_told != cursor.alarm else [])],
            cursor=str(_Cursor(last, is_told)),
        )

    return new_shards


@dataclass(frozen=True, slots=True)
class _Cursor:
    """What one tick leaves to the next."""

    after: str | None = None
    """The shard that was looked at last."""
    alarm: bool = False
    """Whether people have been told of shards that have gone."""

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """The cursor of the last tick; that of an earlier release is the key of a shard."""
        with suppress(ValueError, TypeError, KeyError):
            found = json.loads(text or "{}")
            return cls(found.get("after"), bool(found.get("alarm"))) if isinstance(found, dict) else cls(text)
        return cls(text)

    def __str__(self) -> str:
        return json.dumps({"after": self.after, "alarm": self.alarm})


def _tell(alerts: Alerts, removals: Removals, log: Logger) -> bool:
    """Send the alarm; one that does not reach its target is logged, and sent again by the next tick."""
    try:
        alerts.send(str(removals.alarm), log)
    except AlertError as error:
        log.error(str(error))
        return False
    return True


def _in_turn(shards: Sequence[Shard], cursor: str | None) -> list[Shard]:
    """All shards, those first that come after the one that was looked at last."""
    after = [shard for shard in shards if cursor is None or shard.key > cursor]
    return after + [shard for shard in shards if cursor is not None and shard.key <= cursor]


@dataclass
class _Found:
    """What a tick finds."""

    settings: Settings
    source: Root
    registered: set[str]
    observed: dict[str, str] = field(default_factory=dict)
    """Version of each shard as it was last reported."""
    new: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    """To be reported."""
    waiting: dict[str, str] = field(default_factory=dict)
    """Shards that are still being written, and how that is known."""
    future: list[str] = field(default_factory=list)
    """Shards to be reported with modification times in the future."""
    looked_at: int = 0

    def look(self, shards: Sequence[Shard]) -> str | None:
        """Look at shards as long as there is time, and return the key of the last."""
        last = None
        for shard, content in _contents(self.source, shards):
            if len(self.versions) >= MOST_EVENTS:
                break
            last = shard.key
            self.looked_at += 1
            if isinstance(content, CaptionAssetsError):
                self.waiting[shard.key] = f"it cannot be looked at: {content}"
                continue
            if shard.key in self.registered and self.observed.get(shard.key) == content.version:
                continue
            if reason := self._unfinished(shard, content):
                self.waiting[shard.key] = reason
                continue
            if content.future:
                self.future.append(shard.key)
            if shard.key not in self.registered:
                self.new.append(shard.key)
            if self.observed.get(shard.key) != content.version:
                self.versions[shard.key] = content.version
        self.new.sort()  # partitions stay in the order in which they are added
        return last

    def report_removed(self, removals: Removals) -> None:
        """Report shards that have gone, as many as one tick may, unless there are too many to believe it."""
        if removals.alarm is None:
            self.versions |= dict.fromkeys(removals.new[: MOST_EVENTS - len(self.versions)], REMOVED)

    def events(self, instance: dg.DagsterInstance, project: Project, listed: int) -> list[AssetEvent]:
        """What is reported: registered shards that the UI does not count yet, changes, and the look that found some.

        Args:
            instance: knows what was reported before.
            project: whose assets these are.
            listed: the number of shards in the source.
        """
        known = {shard: self.observed.get(shard, REMOVED) for shard in self.registered} | self.versions
        recorded = instance.get_materialized_partitions(project.shards)
        missing = sorted(shard for shard, version in known.items() if shard not in recorded and not is_removed(version))
        events: list[AssetEvent] = [
            registration(project, shard, known[shard]) for shard in missing[: MOST_EVENTS - len(self.versions)]
        ]
        events += [observation(project, shard, version) for shard, version in self.versions.items()]
        index = project.key(SHARD_INDEX)
        if self.new or (self.registered and instance.get_latest_materialization_event(index) is None):
            events.append(dg.AssetMaterialization(index, metadata=index_metadata(self.source, listed, self.new)))
        return events

    def _unfinished(self, shard: Shard, content: ShardContent) -> str | None:
        """Why a shard is taken to be still written to."""
        if content.changed is None:
            return "it is empty"
        quiet = datetime.now(UTC) - content.changed
        # A time further ahead says nothing about when the shard was written, and would hide it until then.
        if -CLOCK_TOLERANCE <= quiet < timedelta(minutes=self.settings.shard_quiet_minutes):
            seconds = quiet.total_seconds()
            return f"it was written to {seconds:.0f} s ago" if seconds >= 0 else f"its time is {-seconds:.0f} s ahead"
        marker = self.settings.shard_marker
        if marker and not self.source.exists(_marker_path(shard, marker)):
            return f"{_marker_path(shard, marker)} is not there"
        return None

    @property
    def message(self) -> str | None:
        """What the tick tells where nothing is to be done; None if something is."""
        if self.new or self.versions:
            return None
        some = list(self.waiting.items())[:SHOWN]
        waiting = "".join(f"; {shard} waits: {reason}" for shard, reason in some)
        more = f"; {len(self.waiting) - SHOWN} more wait" if len(self.waiting) > SHOWN else ""
        return f"nothing new in the {self.looked_at} shards looked at{waiting}{more}"


def _passed_over(listing: Listing) -> str:
    """The end of a tick's message: what in the source is not a shard."""
    rows = listing.describe_skipped(SHOWN)
    return "; passed over: " + ", ".join(f"{reason}: {count} ({some})" for reason, count, some in rows) if rows else ""


def _contents(source: Root, shards: Sequence[Shard]) -> Iterator[tuple[Shard, ShardContent | CaptionAssetsError]]:
    """What is in shards, or why that is unknown, as far as there is time to look."""
    deadline = time.monotonic() + TICK_SECONDS
    with ThreadPoolExecutor(READERS) as pool:
        for begin in range(0, len(shards), READERS):
            if time.monotonic() > deadline:
                return
            group = shards[begin : begin + READERS]
            yield from zip(group, pool.map(partial(_content, source), group), strict=True)


def _content(source: Root, shard: Shard) -> ShardContent | CaptionAssetsError:
    """What is in a shard; whatever keeps that from being known is this shard's alone."""
    try:
        return shard_content(source, shard)
    except Exception as error:
        return as_project_error(error)


def _marker_path(shard: Shard, marker: str) -> str:
    """Where the object lies that says that a shard is whole: in its folder, or beside its tar or list."""
    return f"{shard.path}/{marker}" if shard.layout is Layout.FOLDER else f"{shard.path}.{marker}"
