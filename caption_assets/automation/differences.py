"""The differences between Dagster's event log and the root, and the reports that settle them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum

import dagster as dg

from caption_assets.automation.records import Metadata, Record, report_removed, report_stored
from caption_assets.captioning.prediction import predicted_tokens
from caption_assets.captioning.stages import TABLE_NAMES
from caption_assets.checks.findings import find, mean_words
from caption_assets.checks.stored import read_stored
from caption_assets.dagster_lib.check_events import MEAN_WORDS
from caption_assets.dagster_lib.columns import ROW_COUNT
from caption_assets.dagster_lib.project import Project
from caption_assets.errors import CaptionAssetsError
from caption_assets.settings import Settings
from caption_assets.store.failure import StoreError
from caption_assets.store.root import Root
from caption_assets.store.tables import CLIP_MANIFEST, Status, TableError, read_manifest, table_path
from caption_assets.store.versions import TableVersions, read_versions

READERS = 16
"""Footers that are read at once: from object storage each takes tens of milliseconds, most of it waiting."""


class Kind(StrEnum):
    """What a difference is, and what follows."""

    NOT_STORED = "recorded, not stored"
    """The table is reported as removed."""
    DAMAGED = "recorded, damaged"
    """So is one that cannot be read."""
    NOT_RECORDED = "stored, not recorded"
    """The table is reported, unless a check of severity error does not pass."""
    UNREADABLE = "stored, and cannot be read"
    """Nothing: it is not known what the table is."""
    OF_UNKNOWN_VERSION = "stored, without versions"
    """Nothing: the file is of an earlier release and has no record. The schedule has it made again."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A table on which log and root differ."""

    table: str
    shard: str
    kind: Kind
    versions: TableVersions | None = None
    """Of the stored table."""
    reason: str = ""
    """Why it cannot be read."""


class NotPassed(CaptionAssetsError):
    """A stored table that a run would not have recorded either."""


def find_differences(
    root: Root,
    shards: Iterable[str],
    stored: Mapping[str, Collection[str]],
    records: Mapping[str, Mapping[str, Record]],
) -> list[Difference]:
    """The differences on some shards, in the order in which they are to be settled: inputs first.

    The footers of all their stored tables are read.
    """
    pairs = [(table, shard) for table in TABLE_NAMES for shard in shards]

    def look(pair: tuple[str, str]) -> Difference | None:
        table, shard = pair
        return _look(root, table, shard, shard in stored[table], records[table].get(shard))

    with ThreadPoolExecutor(READERS) as pool:
        return [found for found in pool.map(look, pairs) if found]


def _look(root: Root, table: str, shard: str, is_stored: bool, record: Record | None) -> Difference | None:
    is_recorded = record is not None and not record.removed
    try:
        versions = read_versions(root, table, shard) if is_stored else None
    except TableError as error:
        return Difference(table, shard, Kind.DAMAGED, reason=str(error)) if is_recorded else None
    except StoreError as error:
        return Difference(table, shard, Kind.UNREADABLE, reason=str(error))
    if not is_stored:
        return Difference(table, shard, Kind.NOT_STORED) if is_recorded else None
    if versions is None:
        known = record is not None and record.versions is not None
        return None if known else Difference(table, shard, Kind.OF_UNKNOWN_VERSION)
    if record is None or record.versions is None or not versions.agree_with(record.versions):
        return Difference(table, shard, Kind.NOT_RECORDED, versions)
    return None


def resolve(
    instance: dg.DagsterInstance, settings: Settings, root: Root, differences: Sequence[Difference]
) -> Iterator[tuple[Difference, str]]:
    """Report what is stored and what is not; yields each difference with what was done about it."""
    project = Project(settings.project)
    for one in differences:
        match one.kind:
            case Kind.NOT_STORED | Kind.DAMAGED:
                report_removed(instance, project.key(one.table), one.shard)
                yield one, "reported as removed"
            case Kind.NOT_RECORDED:
                try:
                    yield one, _record(instance, settings, root, one)
                except CaptionAssetsError as error:
                    yield one, f"not reported: {error}"
            case Kind.UNREADABLE:
                yield one, one.reason
            case Kind.OF_UNKNOWN_VERSION:
                yield one, "left to the schedule, which has it made again"


def _record(instance: dg.DagsterInstance, settings: Settings, root: Root, one: Difference) -> str:
    """Record a stored table.

    Raises:
        NotPassed: if a check of severity error does not pass.
        TableError: if the table, or one that it is checked against, cannot be used.
        StoreError: if the root cannot be read.
    """
    assert one.versions is not None  # it is of a kind that has them
    if one.table == CLIP_MANIFEST:
        metadata = _examine_manifest(root, one.shard, settings)
    else:
        metadata = _examine_captions(root, one.table, one.shard, settings)
    path = dg.MetadataValue.path(root.address(table_path(one.table, one.shard)))
    report_stored(instance, Project(settings.project), one.table, one.shard, one.versions, {**metadata, "path": path})
    return "reported as stored"


def _examine_manifest(root: Root, shard: str, settings: Settings) -> Metadata:
    rows, recipe = read_manifest(root, shard), settings.recipe
    clips, unreadable = len({row.clip_key for row in rows}), sum(row.status is Status.FAILED for row in rows)
    if clips and unreadable / clips > settings.max_unreadable_fraction:
        raise NotPassed(
            f"{unreadable} of {clips} clips are unreadable, more than CAPTION_MAX_UNREADABLE_FRACTION = "
            f"{settings.max_unreadable_fraction:g}"
        )
    return {
        ROW_COUNT: len(rows),
        "clips": clips,
        "rows_ok": len(rows) - unreadable,
        "rows_failed": unreadable,
        "predicted_visual_tokens": sum(predicted_tokens(row, recipe.variant, recipe.frames) for row in rows),
    }


def _examine_captions(root: Root, table: str, shard: str, settings: Settings) -> Metadata:
    looked = read_stored(root, shard, table)[table]
    for finding in find(looked, max_failed_fraction=settings.max_failed_fraction, earlier_means=[]):
        if finding.is_error:
            raise NotPassed(finding.message)
    words = mean_words(looked.said)
    return {
        ROW_COUNT: len(looked.rows),
        "rows_ok": sum(row.status is Status.OK for row in looked.rows),
        "rows_failed": sum(row.status is Status.FAILED for row in looked.rows),
        **({} if words is None else {MEAN_WORDS: round(words, 2)}),
    }
