"""The attempts to make a table that failed, and their reasons, from Dagster's event log."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import dagster as dg

from caption_assets.automation.records import EVENTS_PER_QUERY
from caption_assets.dagster_lib.failures import SHARDS_METADATA
from caption_assets.dagster_lib.metadata import ERROR
from caption_assets.dagster_lib.project import Project

MAX_READ_RUNS = 100
"""Maximum number of runs of which one call reads the log, the latest first. SQLite has a database for each run."""
_NONE = (0, "")
"""The reason of a shard for which none was reported."""
FAILED = (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """The last run over a shard, which did not make its table."""

    run_id: str
    reason: str


def read_failed_attempts(
    instance: dg.DagsterInstance, project: Project, shards: Collection[str]
) -> dict[str, dict[str, FailedAttempt]]:
    """The failed attempts by table and shard, for tables that were not made since.

    It takes a few queries for each table, and the log of each run that failed as a whole.
    """
    wanted = set(shards)
    # Dagster's public methods need one query for each partition.
    fetch = instance.event_log_storage.get_latest_asset_partition_materialization_attempts_without_materializations
    attempts = {
        table: {shard: one for shard, one in fetch(project.key(table)).items() if shard in wanted}
        for table in project.tables
    }
    failed = _failed_runs(instance, {run for found in attempts.values() for run, _ in found.values()})
    reported = {table: _reported_reasons(instance, project.key(table), found) for table, found in attempts.items()}
    unexplained = [
        (event, run)
        for table, found in attempts.items()
        for shard, (run, event) in found.items()
        if run in failed and reported[table].get(shard, _NONE)[0] < event
    ]
    of_runs = _run_reasons(instance, failed, dict.fromkeys(run for _, run in sorted(unexplained, reverse=True)))

    def reason(table: str, shard: str, run: str, event: int) -> str:
        at, text = reported[table].get(shard, _NONE)
        of_run = None if at > event else of_runs.get(run)
        return of_run or text or f"run {run} failed, and has not reported why this shard was not completed"

    return {
        table: {
            shard: FailedAttempt(run, reason(table, shard, run, event))
            for shard, (run, event) in found.items()
            if run in failed
        }
        for table, found in attempts.items()
    }


def _failed_runs(instance: dg.DagsterInstance, runs: Collection[str]) -> dict[str, dg.DagsterRun]:
    """Those of the runs that failed or were canceled, by id."""
    ids = sorted(runs)
    chunks = [ids[begin : begin + EVENTS_PER_QUERY] for begin in range(0, len(ids), EVENTS_PER_QUERY)]
    found = (run for chunk in chunks for run in instance.get_runs(dg.RunsFilter(run_ids=chunk)))
    return {run.run_id: run for run in found if run.status in FAILED}


def _reported_reasons(
    instance: dg.DagsterInstance, key: dg.AssetKey, attempts: Collection[str]
) -> dict[str, tuple[int, str]]:
    """The reasons that runs reported as observations, each with the event's storage id, by shard.

    A reason may be older than the last attempt: a run over a range may have left out the shard.
    """
    if not attempts:
        return {}
    kind = dg.DagsterEventType.ASSET_OBSERVATION
    latest = instance.event_log_storage.get_latest_storage_id_by_partition(key, kind, set(attempts))
    events = {event: shard for shard, event in latest.items()}
    ids, found = list(events), {}
    for begin in range(0, len(ids), EVENTS_PER_QUERY):
        chunk = ids[begin : begin + EVENTS_PER_QUERY]
        filters = dg.AssetRecordsFilter(asset_key=key, storage_ids=chunk)
        for record in instance.fetch_observations(filters, limit=len(chunk)).records:
            metadata = (record.asset_observation and record.asset_observation.metadata) or {}
            if ERROR in metadata:
                found[events[record.storage_id]] = record.storage_id, str(metadata[ERROR].value)
    return found


def _run_reasons(
    instance: dg.DagsterInstance, failed: Mapping[str, dg.DagsterRun], runs: Iterable[str]
) -> dict[str, str | None]:
    """The reasons of runs that failed as a whole, by id. ``runs`` begins with the latest."""
    found: dict[str, str | None] = {
        run: "canceled" for run in runs if failed[run].status is dg.DagsterRunStatus.CANCELED
    }
    others = [run for run in runs if run not in found]
    for run in others[:MAX_READ_RUNS]:
        found[run] = _run_reason(instance, run)
    return found


def _run_reason(instance: dg.DagsterInstance, run: str) -> str | None:
    """The reason of the first step that failed, or else that of the run; None if single shards failed."""
    kinds = {dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE}
    records = instance.get_records_for_run(run, of_type=kinds).records
    events = [event for record in records if (event := record.event_log_entry.dagster_event)]
    for event in events:
        if event.event_type is dg.DagsterEventType.STEP_FAILURE:
            data = event.step_failure_data
            failure = data.user_failure_data
            if failure and SHARDS_METADATA in failure.metadata:
                return None
            return (failure and failure.description) or data.error_display_string
    return events[0].message if events else None
