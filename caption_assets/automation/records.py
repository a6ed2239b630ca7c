"""The records of shards' tables in Dagster's event log, and reports that correct them.

A record is the latest materialization of a table's partition. Anybody may write one: the UI's "Report materialization"
makes events without any version. Such a record says nothing about the table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import dagster as dg

from caption_assets.dagster_lib.private import (
    CODE_VERSION_TAG,
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
    get_input_event_pointer_tag,
)
from caption_assets.dagster_lib.project import SHARDS, Project
from caption_assets.dagster_lib.provenance import input_version_tags, versions_of
from caption_assets.store.versions import TableVersions

REMOVED = "removed"
"""Data version and code version of a record that says that the table is not stored any more.

Dagster's open-source storages cannot wipe single partitions (``wipe_asset_partitions`` raises NotImplementedError); an
event is the only means left. Its code version is nobody's, so that the UI shows the partition as stale.
"""
EVENTS_PER_QUERY = 500
"""Events that are fetched by one query."""
EARLIER_EVENTS = 20
"""Events of an input that are searched for the version that a table was made from."""
NO_EVENT = "-2"
"""Event pointer for an input's version that no event has. Dagster compares the present version with that of the last
event up to the pointer, finds none, and shows the table as stale. It takes 0 and -1 for no pointer at all."""

Metadata = Mapping[str, dg.MetadataValue | int | float | str]


@dataclass(frozen=True, slots=True)
class Record:
    """The latest materialization of one table of one shard."""

    event: int
    """Storage id of the event."""
    versions: TableVersions | None
    """None if the event does not have them."""
    removed: bool
    """Whether it says that the table is not stored any more."""


_Told = dict[int, tuple[str, TableVersions | None]]
"""The data version and all versions that events tell, by event."""
_told_before: dict[tuple[int, dg.AssetKey], _Told] = {}
"""What this process has read, by instance and asset. Only the data version is indexed, an event never changes, and
parsing one takes 0.6 ms: for the tables of 10,000 shards that would be 18 s a tick."""


def read_records(
    instance: dg.DagsterInstance, project: Project, table: str, shards: Collection[str]
) -> dict[str, Record]:
    """The records of a table, of those ``shards`` that have one.

    It takes two queries for all shards, and one for each ``EVENTS_PER_QUERY`` events that are new to this process.
    """
    key, kind = project.key(table), dg.DagsterEventType.ASSET_MATERIALIZATION
    # Dagster's public methods take a query for each partition.
    storage = instance.event_log_storage
    events = storage.get_latest_storage_id_by_partition(key, kind)
    tags = storage.get_latest_tags_by_partition(key, kind, [DATA_VERSION_TAG])
    data = {shard: found[DATA_VERSION_TAG] for shard, found in tags.items() if DATA_VERSION_TAG in found}
    wanted = {shard: events[shard] for shard in shards if shard in events and data.get(shard, REMOVED) != REMOVED}
    place = (hash(repr(instance.get_ref())), key) if instance.is_persistent else None
    told = dict(_told_before.get(place, {})) if place else {}
    unread = [event for shard, event in wanted.items() if told.get(event, ("",))[0] != data[shard]]
    for chunk in _chunks(unread):
        filters = dg.AssetRecordsFilter(asset_key=key, storage_ids=chunk)
        told.update(map(_versions, instance.fetch_materializations(filters, limit=len(chunk)).records))
        if place:
            _told_before[place] = dict(told)  # also if the tick ends here, for lack of time
    if place:
        _told_before[place] = {event: told[event] for event in events.values() if event in told}
    return {
        shard: Record(event, told[event][1] if shard in wanted and event in told else None, data.get(shard) == REMOVED)
        for shard in shards
        if (event := events.get(shard)) is not None
    }


def _versions(record: dg.EventLogRecord) -> tuple[int, tuple[str, TableVersions | None]]:
    tags = (record.asset_materialization and record.asset_materialization.tags) or {}
    return record.storage_id, (tags.get(DATA_VERSION_TAG, ""), versions_of(tags))


def is_recorded(instance: dg.DagsterInstance, asset: dg.AssetKey, shard: str) -> bool:
    """Whether an asset of a shard has a record that does not say that it was removed."""
    filters = dg.AssetRecordsFilter(asset_key=asset, asset_partitions=[shard])
    for record in instance.fetch_materializations(filters, limit=1).records:
        tags = (record.asset_materialization and record.asset_materialization.tags) or {}
        return tags.get(DATA_VERSION_TAG) != REMOVED
    return False


def report_removed(instance: dg.DagsterInstance, asset: dg.AssetKey, shard: str) -> None:
    """Record that what an asset made of a shard is not stored any more."""
    tags = {DATA_VERSION_TAG: REMOVED, DATA_VERSION_IS_USER_PROVIDED_TAG: "true", CODE_VERSION_TAG: REMOVED}
    event = dg.AssetMaterialization(asset, "It is not stored any more.", partition=shard, tags=tags)
    instance.report_runless_asset_event(event)


def report_stored(
    instance: dg.DagsterInstance,
    project: Project,
    table: str,
    shard: str,
    versions: TableVersions,
    metadata: Metadata,
) -> None:
    """Record a table that is stored."""
    tags = {
        DATA_VERSION_TAG: versions.data,
        DATA_VERSION_IS_USER_PROVIDED_TAG: "true",
        CODE_VERSION_TAG: versions.code,
        **input_version_tags(project, versions),
    }
    for name, version in versions.inputs.items():
        tags[get_input_event_pointer_tag(project.key(name))] = _pointer(instance, project, name, shard, version)
    key = project.key(table)
    event = dg.AssetMaterialization(key, "Reported from the stored table.", metadata, shard, tags)
    instance.report_runless_asset_event(event)


def _pointer(instance: dg.DagsterInstance, project: Project, name: str, shard: str, version: str) -> str:
    """The latest event of an input that has a version."""
    fetch = instance.fetch_observations if name == SHARDS else instance.fetch_materializations
    key = project.key(name)
    filters = dg.AssetRecordsFilter(asset_key=key, asset_partitions=None if key == project.weights else [shard])
    for record in fetch(filters, limit=EARLIER_EVENTS).records:
        event = record.asset_observation or record.asset_materialization
        if event and (event.tags or {}).get(DATA_VERSION_TAG) == version:
            return str(record.storage_id)
    return NO_EVENT


def _chunks(events: Iterable[int]) -> Iterator[list[int]]:
    remaining = iter(events)
    while chunk := list(islice(remaining, EVENTS_PER_QUERY)):
        yield chunk
