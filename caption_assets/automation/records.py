"""The records of tables in Dagster's event log: reading them, and reporting events that correct them.

A record is the latest materialization of a table's partition. It has no versions if it was reported in the UI; then it
says nothing about the stored table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import dagster as dg

from caption_assets.dagster_lib.metadata import ROWS_FAILED, ROWS_OK, Metadata, count
from caption_assets.dagster_lib.private_dagster import (
    CODE_VERSION_TAG,
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
    get_input_event_pointer_tag,
)
from caption_assets.dagster_lib.project import SHARDS, Project
from caption_assets.dagster_lib.provenance import input_version_tags, versions_of
from caption_assets.store.versions import TableVersions

REMOVED = "removed"
"""Data version and code version of a record of a removed table.

Dagster's open-source storages cannot wipe single partitions (``wipe_asset_partitions`` raises NotImplementedError), so
the removal is an event. No asset has its code version, so that the UI shows the partition as stale.
"""
EVENTS_PER_QUERY = 500
"""Maximum number of events fetched by one query."""
MAX_INPUT_EVENTS = 20
"""Maximum number of an input's latest events that are searched for the version that a table was made from."""
NO_EVENT = "-2"
"""Event pointer for an input version that no event has. Dagster compares the present version with that of the latest
event up to the pointer, finds none, and shows the table as stale. It treats 0 and -1 as no pointer."""


@dataclass(frozen=True, slots=True)
class Record:
    """The latest materialization of one table of one shard."""

    event: int
    """Storage id of the event."""
    versions: TableVersions | None
    """Versions of the table and its inputs; None if the event has none."""
    removed: bool
    """Whether the table is recorded as removed."""
    rows: tuple[int, int] = (0, 0)
    """Number of rows with and without a window or caption; zeros if the event has none."""


@dataclass(frozen=True, slots=True)
class _Event:
    """What this process keeps of a materialization."""

    data: str = ""
    """Data version."""
    versions: TableVersions | None = None
    rows: tuple[int, int] = (0, 0)


_Events = dict[int, _Event]
"""Events by storage id."""
_cache: dict[tuple[int, dg.AssetKey], _Events] = {}
"""The events that this process has read, by instance and asset. They never change, and parsing one takes 0.6 ms: 18 s a
tick for the tables of 10,000 shards. The log's index contains only their data versions."""


def read_records(
    instance: dg.DagsterInstance, project: Project, table: str, shards: Collection[str]
) -> dict[str, Record]:
    """The records of a table, by shard, for those ``shards`` that have one.

    It takes two queries for all shards, and one for each ``EVENTS_PER_QUERY`` events that are new to this process.
    """
    key, kind = project.key(table), dg.DagsterEventType.ASSET_MATERIALIZATION
    # Dagster's public methods need one query for each partition.
    storage = instance.event_log_storage
    events = storage.get_latest_storage_id_by_partition(key, kind)
    tags = storage.get_latest_tags_by_partition(key, kind, [DATA_VERSION_TAG])
    data = {shard: found[DATA_VERSION_TAG] for shard, found in tags.items() if DATA_VERSION_TAG in found}
    wanted = {shard: events[shard] for shard in shards if shard in events and data.get(shard, REMOVED) != REMOVED}
    cache_key = (hash(repr(instance.get_ref())), key) if instance.is_persistent else None
    read = dict(_cache.get(cache_key, {})) if cache_key else {}
    unread = [event for shard, event in wanted.items() if read.get(event, _Event()).data != data[shard]]
    for records in fetch_by_id(instance, key, unread):
        read.update(map(_read, records))
        if cache_key:
            _cache[cache_key] = dict(read)  # kept if the tick is interrupted here
    if cache_key:
        _cache[cache_key] = {event: read[event] for event in events.values() if event in read}
    found = {}
    for shard in shards:
        if (event := events.get(shard)) is not None:
            known = read.get(event, _Event()) if shard in wanted else _Event()
            found[shard] = Record(event, known.versions, data.get(shard) == REMOVED, known.rows)
    return found


def fetch_by_id(
    instance: dg.DagsterInstance, asset: dg.AssetKey, events: Sequence[int]
) -> Iterator[Sequence[dg.EventLogRecord]]:
    """The materializations with these storage ids, one query's after the other."""
    for begin in range(0, len(events), EVENTS_PER_QUERY):
        chunk = events[begin : begin + EVENTS_PER_QUERY]
        filters = dg.AssetRecordsFilter(asset, storage_ids=chunk)
        yield instance.fetch_materializations(filters, limit=len(chunk)).records


def _read(record: dg.EventLogRecord) -> tuple[int, _Event]:
    event = record.asset_materialization
    tags, metadata = (event.tags or {}, event.metadata) if event else ({}, {})
    ok, failed = count(metadata, ROWS_OK), count(metadata, ROWS_FAILED)
    return record.storage_id, _Event(tags.get(DATA_VERSION_TAG, ""), versions_of(tags), (ok, failed))


def is_recorded(instance: dg.DagsterInstance, asset: dg.AssetKey, shard: str) -> bool:
    """Whether a shard's partition of an asset is recorded, and not as removed."""
    filters = dg.AssetRecordsFilter(asset_key=asset, asset_partitions=[shard])
    for record in instance.fetch_materializations(filters, limit=1).records:
        tags = (record.asset_materialization and record.asset_materialization.tags) or {}
        return tags.get(DATA_VERSION_TAG) != REMOVED
    return False


def report_removed(instance: dg.DagsterInstance, asset: dg.AssetKey, shard: str) -> None:
    """Record that a shard's partition of an asset is no longer stored."""
    tags = {DATA_VERSION_TAG: REMOVED, DATA_VERSION_IS_USER_PROVIDED_TAG: "true", CODE_VERSION_TAG: REMOVED}
    event = dg.AssetMaterialization(asset, "No longer stored.", partition=shard, tags=tags)
    instance.report_runless_asset_event(event)


def report_stored(
    instance: dg.DagsterInstance,
    project: Project,
    table: str,
    shard: str,
    versions: TableVersions,
    metadata: Metadata,
) -> None:
    """Record a stored table."""
    tags = {
        DATA_VERSION_TAG: versions.data,
        DATA_VERSION_IS_USER_PROVIDED_TAG: "true",
        CODE_VERSION_TAG: versions.code,
        **input_version_tags(project, versions),
    }
    for name, version in versions.inputs.items():
        tags[get_input_event_pointer_tag(project.key(name))] = _pointer(instance, project, name, shard, version)
    key = project.key(table)
    event = dg.AssetMaterialization(key, "Recorded from the stored table.", metadata, shard, tags)
    instance.report_runless_asset_event(event)


def _pointer(instance: dg.DagsterInstance, project: Project, name: str, shard: str, version: str) -> str:
    """The storage id of the latest event of an input with a version."""
    fetch = instance.fetch_observations if name == SHARDS else instance.fetch_materializations
    key = project.key(name)
    filters = dg.AssetRecordsFilter(asset_key=key, asset_partitions=None if key == project.weights else [shard])
    for record in fetch(filters, limit=MAX_INPUT_EVENTS).records:
        event = record.asset_observation or record.asset_materialization
        if event and (event.tags or {}).get(DATA_VERSION_TAG) == version:
            return str(record.storage_id)
    return NO_EVENT
