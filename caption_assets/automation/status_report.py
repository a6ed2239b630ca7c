"""The sensor that reports the status of the shards to the UI: totals, and on each stale partition what changed.

Dagster's own page of a stale partition says that the code version or an input has changed, and not what. It shows the
metadata of observations that are newer than the latest materialization; a new materialization hides them. The page of
an asset shows the metadata of materializations alone, so that totals are reported as one of ``shard_index``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import islice

import dagster as dg

from caption_assets.automation.shard_status import ShardStatus, State, TableStatus, present_code, read_statuses
from caption_assets.automation.status_summary import Group, count_states, count_tables, failures, staleness
from caption_assets.dagster_lib.failures import as_dagster_failure
from caption_assets.dagster_lib.metadata import ERROR, Metadata, markdown_table
from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.project_claim import check_claim
from caption_assets.dagster_lib.recipe_metadata import changes_table
from caption_assets.dagster_lib.status_metadata import SHOWN_REASONS, STALE_BECAUSE, STATUS_MEANINGS
from caption_assets.report.staleness import Change
from caption_assets.resources import Storage
from caption_assets.settings import Settings

INTERVAL_SECONDS = 30
"""Interval between two ticks, in seconds. A tick without changes takes one query."""
REPORT_SECONDS = 300
"""Minimum time between two reports, in seconds, unless the code version changed. A report on 1,000 shards takes about a
second, or three in a new process."""
MAX_EVENTS = 200
"""Maximum number of partitions that one report explains; the next tick continues. SQLite takes up to 17 ms an event."""


@dataclass(frozen=True, slots=True)
class _Cursor:
    """The sensor's cursor."""

    log: int = 0
    """Storage id of the instance's latest event at the last report."""
    at: float = 0.0
    """Time of the last report, in seconds since 1970."""
    code: str = ""
    """Hash of the code versions at the last report."""
    since: int = 0
    """Storage id of the latest event when the code versions changed. Older explanations are outdated."""
    is_done: bool = True
    """Whether the last report explained all stale partitions."""

    @classmethod
    def parse(cls, text: str | None) -> _Cursor:
        return cls(**json.loads(text)) if text else cls()

    def __str__(self) -> str:
        return json.dumps(asdict(self))


def build_status_report(settings: Settings) -> dg.SensorDefinition:
    """The sensor. It is on by default, also without CAPTION_AUTOMATE: it starts no run and changes no table."""
    project = Project.of(settings)

    @dg.sensor(
        name="status_report",
        description="Reports totals on shard_index, and on each stale partition what changed since it was made.",
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    def status_report(context: dg.SensorEvaluationContext, storage: Storage) -> dg.SensorResult | dg.SkipReason:
        instance, cursor, now = context.instance, _Cursor.parse(context.cursor), time.time()
        code, log = _code_hash(settings), instance.event_log_storage.get_maximum_record_id() or 0
        is_new = code != cursor.code
        if not is_new and cursor.is_done and (log == cursor.log or now - cursor.at < REPORT_SECONDS):
            return dg.SkipReason("nothing to report yet")
        with as_dagster_failure():
            check_claim(instance, project, storage)
            statuses = read_statuses(instance, settings, storage.root_to_read())
        since = log if is_new else cursor.since
        explained = list(islice(explanations(instance, project, statuses, since), MAX_EVENTS))
        changed = totals(instance, project, statuses)
        log += len(explained) + len(changed)
        return dg.SensorResult(
            skip_reason=f"explained {len(explained)} stale partitions{'; reported new totals' if changed else ''}",
            asset_events=[*explained, *changed],
            cursor=str(_Cursor(log, now, code, since, len(explained) < MAX_EVENTS)),
        )

    return status_report


def _code_hash(settings: Settings) -> str:
    versions = {table: basis.code for table, basis in present_code(settings).items()}
    return sha256(json.dumps(versions).encode()).hexdigest()[:16]


def explanations(
    instance: dg.DagsterInstance, project: Project, statuses: Mapping[str, ShardStatus], since: int = 0
) -> Iterator[dg.AssetObservation]:
    """An observation for each stale partition that has no current one. It has no data version and changes no status.

    Args:
        instance: the Dagster instance.
        project: project of the assets.
        statuses: the status of each shard.
        since: storage id of an event; older explanations are outdated.
    """
    kind = dg.DagsterEventType.ASSET_OBSERVATION
    for table in project.tables:
        key = project.key(table)
        observed = instance.event_log_storage.get_latest_storage_id_by_partition(key, kind)
        for shard, status in statuses.items():
            one = status.tables.get(table)
            if one and one.changes and observed.get(shard, 0) <= max(status.latest_event, since):
                yield _explanation(key, shard, one)


def _explanation(key: dg.AssetKey, shard: str, table: TableStatus) -> dg.AssetObservation:
    changes = [*table.changes, *(Change(name, "current", "not current") for name in table.stale_inputs)]
    metadata: Metadata = {STALE_BECAUSE: changes_table(changes)}
    if table.reason:
        metadata[ERROR] = table.reason
    description = "Stale: " + "; ".join(f"{change.what} changed" for change in changes)
    return dg.AssetObservation(key, description, metadata, shard)


def totals(
    instance: dg.DagsterInstance, project: Project, statuses: Mapping[str, ShardStatus]
) -> list[dg.AssetMaterialization]:
    """A materialization of ``shard_index`` with the present totals; empty if the latest one has them.

    It repeats the other metadata and the versions of the latest one.
    """
    event = instance.get_latest_materialization_event(project.shard_index)
    latest = event and event.asset_materialization
    if latest is None:
        return []
    present = dg.AssetMaterialization(project.shard_index, metadata=totals_metadata(project, statuses)).metadata
    if all(latest.metadata.get(name) == value for name, value in present.items()) and not (
        latest.metadata.keys() & STATUS_MEANINGS.keys() - present.keys()
    ):
        return []
    others = {name: value for name, value in latest.metadata.items() if name not in STATUS_MEANINGS}
    description = "Status of the shards, reported by the sensor status_report."
    return [dg.AssetMaterialization(project.shard_index, description, {**present, **others}, tags=latest.tags)]


def totals_metadata(project: Project, statuses: Mapping[str, ShardStatus]) -> Metadata:
    """Totals over all shards."""
    states = count_states(statuses)
    counts = count_tables(statuses, project.tables)
    shown = (State.COMPLETE, State.STALE, State.FAILED, State.MISSING)
    header = ["table", "complete", "stale", "failed", "missing", "rows ok", "rows failed"]
    rows = (
        [table, *(str(one.states.get(state, 0)) for state in shown), str(one.rows_ok), str(one.rows_failed)]
        for table, one in counts.items()
    )
    metadata: Metadata = {
        "shards_complete": states.get(State.COMPLETE, 0),
        "shards_stale": states.get(State.STALE, 0),
        "shards_failed": states.get(State.FAILED, 0),
        "shards_missing": states.get(State.MISSING, 0) + states.get(State.NO_MANIFEST, 0),
        "status": markdown_table(header, rows),
    }
    for name, groups in (("stale_tables", staleness(statuses)), ("failures", failures(statuses))):
        if groups:
            metadata[name] = _groups_table(groups)
    return metadata


def _groups_table(groups: Sequence[Group]) -> dg.MarkdownMetadataValue:
    rows = ([str(len(group.shards)), ", ".join(group.tables), group.reason] for group in groups[:SHOWN_REASONS])
    return markdown_table(["shards", "tables", "reason"], rows)
