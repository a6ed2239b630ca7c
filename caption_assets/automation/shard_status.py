"""The status of each shard and table of a project, and why a table is stale, failed or missing.

A table is stale if its code version or the version of an input changed, as in Dagster's UI, which calls it unsynced, or
if one of its inputs is stale.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import dagster as dg

from caption_assets.assets.clip_manifest import manifest_code_version
from caption_assets.automation.failed_attempts import FailedAttempt, read_failed_attempts
from caption_assets.automation.records import Record
from caption_assets.automation.shard_states import ShardStates, active_shards, read_states
from caption_assets.captioning.open_shard import WEIGHTS_ASSET, file_metadata
from caption_assets.dagster_lib.private_dagster import DATA_VERSION_TAG
from caption_assets.dagster_lib.project import SHARDS, Project
from caption_assets.dagster_lib.shard_events import is_removed
from caption_assets.report.staleness import Basis, Change, explain
from caption_assets.settings import Settings
from caption_assets.store.root import Root
from caption_assets.store.tables import CLIP_MANIFEST, TableError
from caption_assets.store.versions import TableVersions, read_footer

MAX_FOOTERS = 3
"""Maximum number of files of one code version whose footer is read to find its recipe. One suffices, unless it was
replaced by a file that is not recorded."""


class State(StrEnum):
    """The state of a shard or of a table of a shard."""

    RUNNING = "running"
    """A run that includes the shard has not ended."""
    FAILED = "failed"
    """The last run has not made a table that is needed."""
    NOT_REGISTERED = "not registered"
    """The shard is in the source, and not among the partitions."""
    NO_MANIFEST = "no manifest"
    MISSING = "missing captions"
    STALE = "stale"
    COMPLETE = "complete"
    ABSENT = "missing from the source"
    """The shard is not in the source now, and was not reported as removed."""
    REMOVED = "removed from the source"


@dataclass(frozen=True, slots=True)
class TableStatus:
    """The status of one table of one shard."""

    state: State
    """``MISSING``, ``FAILED``, ``STALE`` or ``COMPLETE``."""
    changes: Sequence[Change] = ()
    """What changed since it was made, if it is stale."""
    stale_inputs: Sequence[str] = ()
    """Names of the tables that it was made from and that are stale."""
    reason: str = ""
    """Why it failed or is missing."""
    run_id: str = ""
    """The run that failed."""
    rows: tuple[int, int] = (0, 0)
    """Number of rows with and without a window or caption."""


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """The status of one shard."""

    state: State
    tables: Mapping[str, TableStatus]
    """By table, each after its inputs; empty for a shard that is not registered or not in the source."""
    latest_event: int = 0
    """Storage id of the latest event that reported the shard's content or recorded one of its tables."""


def read_statuses(
    instance: dg.DagsterInstance,
    settings: Settings,
    root: Root,
    in_source: Collection[str] | None = None,
    content: Mapping[str, str] | None = None,
) -> dict[str, ShardStatus]:
    """The status of each shard, in order of registration, followed by the shards that are not registered.

    Args:
        instance: the Dagster instance.
        settings: settings of the project.
        root: the root.
        in_source: the shards in the source; None if it was not listed.
        content: present version of shards' content, where it is known. Otherwise the last observed one counts.

    Raises:
        RootEmpty: if the root is empty, although tables are recorded.
        StoreError: if the root cannot be read.
    """
    project = Project.of(settings)
    states = read_states(instance, project, root)
    active = active_shards(instance, project)
    failed = read_failed_attempts(instance, project, states.order)
    present = {**states.content, **(content or {})}
    reader = _Reader(settings, root, states, present, failed, weights_version(instance, project))
    found: dict[str, ShardStatus] = {}
    for shard in states.registered:
        if is_removed(states.content.get(shard)):
            found[shard] = ShardStatus(State.REMOVED, {})
            continue
        if in_source is not None and shard not in in_source:
            found[shard] = ShardStatus(State.ABSENT, {})
            continue
        tables = reader.tables(shard)
        events = [records[shard].event for records in states.records.values() if shard in records]
        state = State.RUNNING if shard in active else _state(tables)
        found[shard] = ShardStatus(state, tables, max([states.changed.get(shard, 0), *events]))
    return found | {
        shard: ShardStatus(State.NOT_REGISTERED, {}) for shard in sorted({*(in_source or ())} - found.keys())
    }


def _state(tables: Mapping[str, TableStatus]) -> State:
    """The state of a shard without an active run, from those of its tables."""
    states = {table.state for table in tables.values()}
    if State.FAILED in states:
        return State.FAILED
    if tables[CLIP_MANIFEST].state is State.MISSING:
        return State.NO_MANIFEST
    return next((state for state in (State.MISSING, State.STALE) if state in states), State.COMPLETE)


class _Reader:
    """Determines the status of tables.

    Args:
        settings: settings of the project.
        root: the root.
        states: the states of the shards.
        content: the present versions of the shards' content.
        failed: the failed attempts, by table and shard.
        weights: data version of the weights; None if they are not recorded.
    """

    def __init__(
        self,
        settings: Settings,
        root: Root,
        states: ShardStates,
        content: Mapping[str, str],
        failed: Mapping[str, Mapping[str, FailedAttempt]],
        weights: str | None,
    ) -> None:
        self._root = root
        self._states = states
        self._content = content
        self._failed = failed
        self._weights = weights
        self._present = present_code(settings)
        self._shards = _by_code(states.records)
        self._footers: dict[tuple[str, str], Mapping[str, str]] = {}

    def tables(self, shard: str) -> dict[str, TableStatus]:
        """The status of a shard's tables, each after its inputs."""
        found: dict[str, TableStatus] = {}
        for table in self._states.project.tables:
            found[table] = self._table(shard, table, found)
        return found

    def _table(self, shard: str, table: str, upstream: Mapping[str, TableStatus]) -> TableStatus:
        record, attempt = self._states.records[table].get(shard), self._failed[table].get(shard)
        is_stored = shard in self._states.stored[table]
        if record is None or record.removed or not is_stored or record.versions is None:
            if attempt:
                return TableStatus(State.FAILED, reason=attempt.reason, run_id=attempt.run_id)
            return TableStatus(State.MISSING, reason=_why_missing(record, is_stored))
        inputs = self._states.project.inputs.get(table, ())
        stale = [name for name in inputs if name in upstream and upstream[name].state is not State.COMPLETE]
        changes = self._changes(shard, table, record.versions)
        if not changes and not stale:
            return TableStatus(State.COMPLETE, rows=record.rows)
        if attempt:
            return TableStatus(State.FAILED, changes, stale, attempt.reason, attempt.run_id, record.rows)
        return TableStatus(State.STALE, changes, stale, rows=record.rows)

    def _changes(self, shard: str, table: str, versions: TableVersions) -> list[Change]:
        present = self._present[table]
        inputs = self._inputs(shard, table)
        if WEIGHTS_ASSET not in versions.inputs:  # a record of an earlier release, which names them no input
            inputs.pop(WEIGHTS_ASSET, None)
        current = Basis(present.code, inputs, present.file_metadata)
        is_other = versions.code != present.code
        return explain(table, Basis.of(versions, self._recipe(table, versions.code) if is_other else None), current)

    def _inputs(self, shard: str, table: str) -> dict[str, str]:
        """The present versions of the inputs of a table, as far as they are recorded."""
        if table == CLIP_MANIFEST:
            return {SHARDS: self._content[shard]}
        found = {WEIGHTS_ASSET: self._weights} if self._weights else {}
        for name, records in self._states.records.items():
            if (record := records.get(shard)) and record.versions:
                found[name] = record.versions.data
        return {name: found[name] for name in self._states.project.inputs[table] if name in found}

    def _recipe(self, table: str, code: str) -> Mapping[str, str]:
        """The file metadata of the recipe of a code version; empty if it is not found."""
        if (table, code) not in self._footers:
            shards = [shard for shard in self._shards[table, code] if shard in self._states.stored[table]]
            footers = (self._footer(table, shard) for shard in shards[:MAX_FOOTERS])
            matching = (
                one for one in footers if (found := TableVersions.from_file_metadata(one)) and found.code == code
            )
            self._footers[table, code] = next(matching, {})
        return self._footers[table, code]

    def _footer(self, table: str, shard: str) -> Mapping[str, str]:
        try:
            return read_footer(self._root, table, shard) or {}
        except TableError:
            return {}


def present_code(settings: Settings) -> dict[str, Basis]:
    """The code version and the recipe that each table would have now, without inputs."""
    recipe = settings.caption_recipe
    stages = {stage.name: Basis(recipe.version(stage), {}, file_metadata(recipe, stage)) for stage in recipe.stages}
    return {CLIP_MANIFEST: Basis(manifest_code_version(settings.windowing)), **stages}


def _by_code(records: Mapping[str, Mapping[str, Record]]) -> Mapping[tuple[str, str], Sequence[str]]:
    """The shards by table and recorded code version."""
    found: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for table, shard, record in _all(records):
        if record.versions:
            found[table, record.versions.code].append(shard)
    return found


def _all(records: Mapping[str, Mapping[str, Record]]) -> Iterator[tuple[str, str, Record]]:
    for table, found in records.items():
        for shard, record in found.items():
            yield table, shard, record


def weights_version(instance: dg.DagsterInstance, project: Project) -> str | None:
    """The present data version of the weights; None if they are not recorded."""
    event = instance.get_latest_materialization_event(project.weights)
    return ((event and event.asset_materialization and event.asset_materialization.tags) or {}).get(DATA_VERSION_TAG)


def _why_missing(record: Record | None, is_stored: bool) -> str:
    """Why a table counts as missing, unless it was never made."""
    is_recorded = record is not None and not record.removed
    if is_stored and record is not None and is_recorded:
        return "recorded without versions"
    if is_stored:
        return "stored, but not recorded: see `caption-assets reconcile`"
    return "recorded, but not stored: see `caption-assets reconcile`" if is_recorded else ""
