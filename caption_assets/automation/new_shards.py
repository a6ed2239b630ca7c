"""The sensor that scans the source: it registers new shards, and reports changed and removed ones."""

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

from caption_assets.assets.shard_index import FUTURE_REMEDY, index_metadata
from caption_assets.automation.alerts import AlertError, Alerts
from caption_assets.automation.removals import Removals, find_removals, removal_evaluation
from caption_assets.automation.status import sensor_status
from caption_assets.dagster_lib.failures import as_dagster_failure
from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.project_claim import claim
from caption_assets.dagster_lib.shard_events import (
    MAX_NAMES,
    REMOVED,
    first_names,
    is_removed,
    observation,
    observed_versions,
    registration,
)
from caption_assets.errors import CaptionAssetsError, as_project_error
from caption_assets.resources import Storage
from caption_assets.settings import Settings
from caption_assets.sources.shard import (
    Layout,
    Listing,
    Shard,
    ShardContent,
    list_shards,
    shard_content,
)
from caption_assets.store.failure import CLOCK_TOLERANCE
from caption_assets.store.root import Root

AssetEvent = dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation
TICK_SECONDS = 15.0
"""Time limit of one tick's scan, in seconds. The next tick continues. Dagster ends a tick after 60 s."""
MAX_EVENTS = 500
"""Maximum number of shards that one tick registers or reports. Each is an event, which takes SQLite up to 17 ms."""
PARALLEL_READS = 16
"""Number of shards listed concurrently. Each takes tens of milliseconds from object storage, mostly waiting."""


def build_new_shards(settings: Settings) -> dg.SensorDefinition:
    """The sensor over CAPTION_SOURCE."""
    project, alerts = Project.of(settings), Alerts(settings)

    @dg.sensor(
        name="new_shards",
        description="Registers the shards of the source as partitions, and reports changed and removed shards.",
        minimum_interval_seconds=settings.sensor_interval_seconds,
        default_status=sensor_status(settings),
    )
    def new_shards(context: dg.SensorEvaluationContext, storage: Storage) -> dg.SensorResult:
        cursor = _Cursor.parse(context.cursor)
        with as_dagster_failure():
            source = storage.source()
            listing = list_shards(source)
            claim(context.instance, project, storage)
            scan = _SourceScan(settings, source, set(project.registered(context.instance)))
            scan.observed = observed_versions(context.instance, project)
            last = scan.run(_rotated(listing.shards, cursor.after))
        removals = find_removals(settings, source, scan.registered, scan.observed, listing.keys)
        scan.report_removed(removals)
        events = scan.events(context.instance, project, len(listing.shards))
        is_alarm_sent = bool(removals.alarm) and (cursor.alarm or _send_alarm(alerts, removals, context.log))
        for path, reason in listing.refused.items():
            context.log.warning(f"{path} is not registered: {reason}")
        if scan.future:
            context.log.warning(
                f"modification times in the future in shards {first_names(scan.future)}: {FUTURE_REMEDY}"
            )
        return dg.SensorResult(
            skip_reason=removals.alarm or (scan.message and scan.message + _describe_skipped(listing)),
            dynamic_partitions_requests=[project.partitions.build_add_request(scan.new)] if scan.new else [],
            asset_events=[*events, *([removal_evaluation(project, removals)] if is_alarm_sent != cursor.alarm else [])],
            cursor=str(_Cursor(last, is_alarm_sent)),
        )

    return new_shards


@dataclass(frozen=True, slots=True)
class _Cursor:
    """The sensor's cursor."""

    after: str | None = None
    """Last scanned shard."""
    alarm: bool = False
    """Whether an alarm about missing shards was sent."""

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """Parse a cursor. In earlier releases it was a shard key."""
        with suppress(ValueError, TypeError, KeyError):
            found = json.loads(text or "{}")
            return cls(found.get("after"), bool(found.get("alarm"))) if isinstance(found, dict) else cls(text)
        return cls(text)

    def __str__(self) -> str:
        return json.dumps({"after": self.after, "alarm": self.alarm})


def _send_alarm(alerts: Alerts, removals: Removals, log: Logger) -> bool:
    """Send the alarm. If it cannot be delivered, log the error; the next tick sends it again."""
    try:
        alerts.send(str(removals.alarm), log)
    except AlertError as error:
        log.error(str(error))
        return False
    return True


def _rotated(shards: Sequence[Shard], cursor: str | None) -> list[Shard]:
    """All shards, starting after the last scanned one."""
    after = [shard for shard in shards if cursor is None or shard.key > cursor]
    return after + [shard for shard in shards if cursor is not None and shard.key <= cursor]


@dataclass
class _SourceScan:
    """The results of a tick's scan."""

    settings: Settings
    source: Root
    registered: set[str]
    observed: dict[str, str] = field(default_factory=dict)
    """Last reported version of each shard."""
    new: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    """Versions to report."""
    waiting: dict[str, str] = field(default_factory=dict)
    """Shards that are not reported yet, with the reason."""
    future: list[str] = field(default_factory=list)
    """Reported shards with modification times in the future."""
    scanned: int = 0

    def run(self, shards: Sequence[Shard]) -> str | None:
        """Scan shards until the time limit, and return the key of the last."""
        last = None
        for shard, content in scan_contents(self.source, shards):
            if len(self.versions) >= MAX_EVENTS:
                break
            last = shard.key
            self.scanned += 1
            if isinstance(content, CaptionAssetsError):
                self.waiting[shard.key] = f"cannot be read: {content}"
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
        self.new.sort()  # partitions keep the order in which they are added
        return last

    def report_removed(self, removals: Removals) -> None:
        """Report missing shards as removed, up to the limit of a tick, unless they raise an alarm."""
        if removals.alarm is None:
            self.versions |= dict.fromkeys(removals.new[: MAX_EVENTS - len(self.versions)], REMOVED)

    def events(self, instance: dg.DagsterInstance, project: Project, listed: int) -> list[AssetEvent]:
        """The events to report: new registrations, changed versions, and a materialization of ``shard_index``.

        Args:
            instance: instance with the earlier events.
            project: project of the assets.
            listed: number of shards in the source.
        """
        versions = {shard: self.observed.get(shard, REMOVED) for shard in self.registered} | self.versions
        recorded = instance.get_materialized_partitions(project.shards)
        missing = sorted(
            shard for shard, version in versions.items() if shard not in recorded and not is_removed(version)
        )
        events: list[AssetEvent] = [
            registration(project, shard, versions[shard]) for shard in missing[: MAX_EVENTS - len(self.versions)]
        ]
        events += [observation(project, shard, version) for shard, version in self.versions.items()]
        index = project.shard_index
        if self.new or (self.registered and instance.get_latest_materialization_event(index) is None):
            events.append(dg.AssetMaterialization(index, metadata=index_metadata(self.source, listed, self.new)))
        return events

    def _unfinished(self, shard: Shard, content: ShardContent) -> str | None:
        """The reason why a shard counts as incomplete; None if it is complete."""
        if content.changed is None:
            return "empty"
        age = datetime.now(UTC) - content.changed
        # A time further in the future cannot be right, and would delay the shard until then.
        if -CLOCK_TOLERANCE <= age < timedelta(minutes=self.settings.shard_quiet_minutes):
            seconds = age.total_seconds()
            return f"written {seconds:.0f} s ago" if seconds >= 0 else f"modified {-seconds:.0f} s in the future"
        marker = self.settings.shard_marker
        if marker and not self.source.exists(_marker_path(shard, marker)):
            return f"{_marker_path(shard, marker)} does not exist"
        return None

    @property
    def message(self) -> str | None:
        """The tick's message if nothing was reported, else None."""
        if self.new or self.versions:
            return None
        some = list(self.waiting.items())[:MAX_NAMES]
        waiting = "".join(f"; {shard} is not ready: {reason}" for shard, reason in some)
        more = f"; {len(self.waiting) - MAX_NAMES} more are not ready" if len(self.waiting) > MAX_NAMES else ""
        return f"no changes in {self.scanned} scanned shards{waiting}{more}"


def _describe_skipped(listing: Listing) -> str:
    """The end of a tick's message: skipped entries of the source."""
    rows = listing.describe_skipped(MAX_NAMES)
    return "; skipped: " + ", ".join(f"{reason}: {count} ({some})" for reason, count, some in rows) if rows else ""


def scan_contents(source: Root, shards: Sequence[Shard]) -> Iterator[tuple[Shard, ShardContent | CaptionAssetsError]]:
    """The contents of shards, or the errors, until the time limit."""
    deadline = time.monotonic() + TICK_SECONDS
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        for begin in range(0, len(shards), PARALLEL_READS):
            if time.monotonic() > deadline:
                return
            group = shards[begin : begin + PARALLEL_READS]
            yield from zip(group, pool.map(partial(_content, source), group), strict=True)


def present_versions(source: Root, shards: Sequence[Shard]) -> dict[str, str]:
    """The present versions of shards' content, as far as they are read within the time limit of a scan."""
    found = scan_contents(source, shards)
    return {shard.key: content.version for shard, content in found if isinstance(content, ShardContent)}


def _content(source: Root, shard: Shard) -> ShardContent | CaptionAssetsError:
    """The content of a shard, or the error: it does not stop the scan of the others."""
    try:
        return shard_content(source, shard)
    except Exception as error:
        return as_project_error(error)


def _marker_path(shard: Shard, marker: str) -> str:
    """Path of a shard's completion marker: in its folder, or beside its tar or list."""
    return f"{shard.path}/{marker}" if shard.layout is Layout.FOLDER else f"{shard.path}.{marker}"
