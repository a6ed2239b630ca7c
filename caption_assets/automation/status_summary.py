"""The summary of a project's status: counts by state, and reasons with the shards that share them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from caption_assets.automation.shard_status import ShardStatus, State, TableStatus
from caption_assets.report.staleness import Change


@dataclass(frozen=True, slots=True)
class Group:
    """Shards that share a reason."""

    tables: Sequence[str]
    reason: str
    """One or several lines."""
    shards: list[str] = field(default_factory=list)
    changes: Sequence[Change] = ()
    """What changed, if the tables are stale."""


@dataclass(frozen=True, slots=True)
class TableCounts:
    """The counts of a table over all shards."""

    states: Mapping[State, int]
    rows_ok: int
    """Number of recorded rows with a window or caption."""
    rows_failed: int
    """Number of recorded rows without one."""


def count_states(statuses: Mapping[str, ShardStatus]) -> dict[State, int]:
    """The number of shards in each state, in the order of the states."""
    counts = Counter(status.state for status in statuses.values())
    return {state: counts[state] for state in State if counts[state]}


def count_tables(statuses: Mapping[str, ShardStatus], tables: Iterable[str]) -> dict[str, TableCounts]:
    """The counts of each table."""
    counts = {}
    for table in tables:
        found = [status.tables[table] for status in statuses.values() if table in status.tables]
        states = Counter(one.state for one in found)
        ok, failed = (sum(one.rows[at] for one in found) for at in (0, 1))
        counts[table] = TableCounts(dict(states), ok, failed)
    return counts


def failures(statuses: Mapping[str, ShardStatus]) -> list[Group]:
    """The reasons of failures, the most frequent first. Tables of a shard that share one are named together."""
    groups: dict[tuple[tuple[str, ...], str], Group] = {}
    for shard, status in statuses.items():
        reasons = {table.reason for table in status.tables.values() if table.state is State.FAILED}
        for reason in sorted(reasons):
            tables = tuple(name for name, one in status.tables.items() if one.reason == reason)
            groups.setdefault((tables, reason), Group(tables, reason)).shards.append(shard)
    return _sorted(groups.values())


def staleness(statuses: Mapping[str, ShardStatus]) -> list[Group]:
    """What changed, by table, the most frequent first. Tables that are stale because of an input alone are left out."""
    found: dict[tuple[str, tuple[str, ...]], dict[str, TableStatus]] = {}
    for shard, status in statuses.items():
        for name, table in status.tables.items():
            if table.changes:
                whats = tuple(change.what for change in table.changes)
                found.setdefault((name, whats), {})[shard] = table
    return _sorted(
        Group([name], _shared(list(tables.values())), list(tables), next(iter(tables.values())).changes)
        for (name, _), tables in found.items()
    )


def unrecorded(statuses: Mapping[str, ShardStatus]) -> list[Group]:
    """Why tables count as missing although they are stored or recorded."""
    groups: dict[tuple[str, str], Group] = {}
    for shard, status in statuses.items():
        for name, table in status.tables.items():
            if table.state is State.MISSING and table.reason:
                groups.setdefault((name, table.reason), Group([name], table.reason)).shards.append(shard)
    return _sorted(groups.values())


def _shared(tables: Sequence[TableStatus]) -> str:
    """The changes of several tables, with values only where all have the same."""
    return "\n".join(
        str(changes[0]) if len(set(changes)) == 1 else f"{changes[0].what} changed"
        for changes in zip(*(table.changes for table in tables), strict=True)
    )


def _sorted(groups: Iterable[Group]) -> list[Group]:
    return sorted(groups, key=lambda group: -len(group.shards))
