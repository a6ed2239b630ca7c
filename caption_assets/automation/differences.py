"""The differences between Dagster's event log and the tables in the root, and the events that resolve them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum

import dagster as dg

from caption_assets.automation.records import Record, report_removed, report_stored
from caption_assets.checks.asset_checks import check_table, raise_errors
from caption_assets.checks.stored_tables import StoredShard
from caption_assets.dagster_lib.metadata import MEAN_WORDS, ROW_COUNT, Metadata
from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.recipe_metadata import recipe_metadata
from caption_assets.errors import CaptionAssetsError
from caption_assets.settings import Settings
from caption_assets.store.failure import StoreError
from caption_assets.store.failure_limits import Failures
from caption_assets.store.root import Root
from caption_assets.store.tables import CLIP_MANIFEST, Status, TableError, read_manifest, table_path
from caption_assets.store.versions import TableVersions, read_versions

PARALLEL_READS = 16
"""Number of file footers read concurrently. Each takes tens of milliseconds from object storage, mostly waiting."""


class Kind(StrEnum):
    """The kind of a difference, and how it is resolved."""

    NOT_STORED = "recorded, not stored"
    """Resolved by recording the table as removed."""
    DAMAGED = "recorded, damaged"
    """Resolved by recording the table as removed, because the file is not a valid table."""
    NOT_RECORDED = "stored, not recorded"
    """Resolved by recording the table, unless a check of severity error fails."""
    UNREADABLE = "stored, not readable"
    """Not resolved: the store failed to read the file."""
    OF_UNKNOWN_VERSION = "stored, without versions"
    """Not resolved: the file is of an earlier release and has no record. The schedule requests it again."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A table for which the event log and the root differ."""

    table: str
    shard: str
    kind: Kind
    versions: TableVersions | None = None
    """Versions of the stored table."""
    reason: str = ""
    """The error, if it cannot be read."""


def find_differences(
    root: Root,
    shards: Iterable[str],
    stored: Mapping[str, Collection[str]],
    records: Mapping[str, Mapping[str, Record]],
) -> list[Difference]:
    """The differences of some shards, in the order of the tables in ``stored``.

    Reads the footers of all their stored tables.

    Args:
        root: the root.
        shards: their keys.
        stored: the shards with a stored table, by table, each table after its inputs.
        records: the records, by table and shard.
    """
    pairs = [(table, shard) for table in stored for shard in shards]

    def compare(pair: tuple[str, str]) -> Difference | None:
        table, shard = pair
        return _compare(root, table, shard, shard in stored[table], records[table].get(shard))

    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        return [found for found in pool.map(compare, pairs) if found]


def _compare(root: Root, table: str, shard: str, is_stored: bool, record: Record | None) -> Difference | None:
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
        has_versions = record is not None and record.versions is not None
        return None if has_versions else Difference(table, shard, Kind.OF_UNKNOWN_VERSION)
    if record is None or record.versions is None or not versions.agree_with(record.versions):
        return Difference(table, shard, Kind.NOT_RECORDED, versions)
    return None


def resolve(
    instance: dg.DagsterInstance, settings: Settings, root: Root, differences: Sequence[Difference]
) -> Iterator[tuple[Difference, str]]:
    """Correct the event log by reporting events. Yields each difference with the result."""
    project = Project.of(settings)
    for difference in differences:
        match difference.kind:
            case Kind.NOT_STORED | Kind.DAMAGED:
                report_removed(instance, project.key(difference.table), difference.shard)
                yield difference, "recorded as removed"
            case Kind.NOT_RECORDED:
                try:
                    yield difference, _record(instance, settings, root, difference)
                except CaptionAssetsError as error:
                    yield difference, f"not recorded: {error}"
            case Kind.UNREADABLE:
                yield difference, difference.reason
            case Kind.OF_UNKNOWN_VERSION:
                yield difference, "not resolved; the schedule requests it again"


def _record(instance: dg.DagsterInstance, settings: Settings, root: Root, difference: Difference) -> str:
    """Record a stored table.

    Raises:
        CheckFailed: if a check of severity error fails.
        TooManyFailures: if a manifest has more unreadable clips than allowed.
        TableError: if the table, or one that it is checked against, is damaged.
        StoreError: if the root cannot be read.
    """
    assert difference.versions is not None  # set for this kind
    table, shard = difference.table, difference.shard
    if table == CLIP_MANIFEST:
        metadata = _manifest_metadata(root, shard, settings)
    else:
        metadata = _caption_metadata(root, table, shard, settings)
    metadata = {**metadata, "path": dg.MetadataValue.path(root.address(table_path(table, shard)))}
    report_stored(instance, Project.of(settings), table, shard, difference.versions, metadata)
    return "recorded"


def _manifest_metadata(root: Root, shard: str, settings: Settings) -> Metadata:
    """The metadata that a run reports of a manifest. Raises ``TooManyFailures``."""
    rows, recipe = read_manifest(root, shard), settings.caption_recipe
    found = Failures.of_manifest(rows)
    settings.failure_limits.check(CLIP_MANIFEST, found)
    return {
        ROW_COUNT: len(rows),
        "clips": found.total,
        "rows_ok": len(rows) - found.failed,
        "rows_failed": found.failed,
        "predicted_visual_tokens": sum(recipe.predicted_tokens(row) for row in rows),
    }


def _caption_metadata(root: Root, table: str, shard: str, settings: Settings) -> Metadata:
    """The metadata that a run reports of captions. Raises ``CheckFailed``."""
    stored = StoredShard(root, shard)
    limits, graph = settings.failure_limits, settings.caption_recipe.graph
    raise_errors(check_table(stored, graph, table, limits=limits, earlier_means=[]))
    rows, words = stored.table(table).rows, stored.table(table).mean_words
    return {
        ROW_COUNT: len(rows),
        "rows_ok": sum(row.status is Status.OK for row in rows),
        "rows_failed": sum(row.status is Status.FAILED for row in rows),
        **({} if words is None else {MEAN_WORDS: round(words, 2)}),
        **recipe_metadata(stored.table(table).file_metadata),
    }
