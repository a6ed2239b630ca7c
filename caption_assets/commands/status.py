"""The command that shows the state of shards, why some are failed or stale, and the next command to type."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from caption_assets.automation.commands import open_instance
from caption_assets.automation.new_shards import present_versions
from caption_assets.automation.shard_status import ShardStatus, State, TableStatus, read_statuses
from caption_assets.automation.status_summary import (
    count_states,
    count_tables,
    failures,
    staleness,
    unrecorded,
)
from caption_assets.commands.selection import check_shards
from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.project_claim import check_claim
from caption_assets.dagster_lib.shard_events import first_names
from caption_assets.resources import build_storage
from caption_assets.settings import load_settings
from caption_assets.sources.shard import list_shards
from caption_assets.store.corrections import pending_corrections

INCOMPLETE = 3
"""Exit status with ``--exit-code`` if a shard is not complete."""
SHOWN_GROUPS = 10
"""Maximum number of reasons of one kind in the text. The JSON document has all."""
SHOWN_SHARDS = 5
"""Maximum number of shards in a command that is proposed; for more it has ``--all``."""
TABLE_STATES = (State.COMPLETE, State.STALE, State.FAILED, State.MISSING)
Statuses = Mapping[str, ShardStatus]


def show_status(shards: Sequence[str], *, as_json: bool) -> bool:
    """Print the status of some shards, or of all.

    Args:
        shards: keys of the shards to show in detail; empty for a summary of all.
        as_json: whether to print a JSON document.

    Returns:
        Whether all these shards are complete.

    Raises:
        UnknownName: if a shard is neither in the source nor registered.
        CaptionAssetsError: if settings, instance, source or root cannot be read.
    """
    settings = load_settings()
    storage, project = build_storage(settings), Project.of(settings)
    with open_instance() as instance:
        check_claim(instance, project, storage)
        source = storage.source()
        listing = list_shards(source)
        content = present_versions(source, [shard for shard in listing.shards if not shards or shard.key in shards])
        root = storage.root_to_read()
        statuses = read_statuses(instance, settings, root, listing.keys, content)
    check_shards(shards, statuses, "the project")
    chosen = {shard: statuses[shard] for shard in shards} if shards else statuses
    corrected = [shard for shard in pending_corrections(root) if shard in chosen] if settings.dataset else []
    accepted = {shard.key for shard in listing.shards}
    to_run = {
        shard: status
        for shard, status in chosen.items()
        if status.state is not State.NOT_REGISTERED or shard in accepted
    }
    if as_json:
        document = _document(settings.root, settings.source_url, project, chosen)
        document |= {"refused": dict(listing.refused), "next": list(_next_commands(to_run, (), corrected))}
        print(json.dumps(document, ensure_ascii=False))
    elif shards:
        print("\n\n".join("\n".join(_details(shard, status)) for shard, status in chosen.items()))
        _print_next(to_run, shards, corrected, has_refused=len(to_run) < len(chosen))
    else:
        print(f"source  {settings.source_url}")
        print(f"root    {settings.root}")
        print(f"Dagster {os.environ['DAGSTER_HOME']}")
        print("\n".join([*_summary(project, chosen), *_refusals(listing.refused)]))
        if chosen:
            _print_next(to_run, (), corrected, has_refused=len(to_run) < len(chosen))
        else:
            print("\nnext: put each shard into the source, as a folder of clips or a .tar, .parquet or .jsonl file")
    return all(status.state in (State.COMPLETE, State.REMOVED) for status in chosen.values())


def _summary(project: Project, statuses: Statuses) -> Iterator[str]:
    """Counts of shards and tables, then the reasons of failures and of staleness."""
    yield f"shards  {len(statuses)}"
    for state, number in count_states(statuses).items():
        names = [shard for shard, status in statuses.items() if status.state is state]
        yield f"  {number:>6}  {state}" + ("" if state is State.COMPLETE else f": {first_names(names)}")
    if any(status.tables for status in statuses.values()):
        yield ""
        yield from _table_lines(project, statuses)
    for title, groups in (
        ("Failed", failures(statuses)),
        ("Stale", staleness(statuses)),
        ("Not recorded", unrecorded(statuses)),
    ):
        if groups:
            yield from ("", title)
        for group in groups[:SHOWN_GROUPS]:
            yield f"  {len(group.shards):>6}  {', '.join(group.tables)} of {first_names(group.shards)}"
            yield from (f"          {line}" for line in group.reason.splitlines())
        if len(groups) > SHOWN_GROUPS:
            yield f"  {len(groups) - SHOWN_GROUPS} more reasons: see `caption-assets status --json`"


def _refusals(refused: Mapping[str, str]) -> Iterator[str]:
    """Why shards cannot be registered."""
    if refused:
        yield from ("", "Refused")
    for reason in dict.fromkeys(refused.values()):
        shards = [shard for shard, why in refused.items() if why == reason]
        yield from (f"  {len(shards):>6}  {first_names(shards)}", f"          {reason}")


def _table_lines(project: Project, statuses: Statuses) -> Iterator[str]:
    """The counts of each table, in columns."""
    rows = [["table", *(str(state).removesuffix(" captions") for state in TABLE_STATES), "rows ok", "rows failed"]]
    for table, counts in count_tables(statuses, project.tables).items():
        numbers = [*(counts.states.get(state, 0) for state in TABLE_STATES), counts.rows_ok, counts.rows_failed]
        rows.append([table, *map(str, numbers)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for first, *others in rows:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        yield "  ".join([first.ljust(widths[0]), *cells])


def _details(shard: str, status: ShardStatus) -> Iterator[str]:
    """The state of each table of a shard."""
    yield f"{shard}: {status.state}"
    for name, table in status.tables.items():
        rows = f"; rows: {table.rows[0]} ok, {table.rows[1]} failed" if any(table.rows) else ""
        yield f"  {name}: {_state_of(table)}{rows}"
        if table.state is not State.COMPLETE:
            yield from (f"    {line}" for line in _reasons(table))


def _state_of(table: TableStatus) -> str:
    return "missing" if table.state is State.MISSING else str(table.state)


def _reasons(table: TableStatus) -> Iterator[str]:
    if table.reason:
        yield from table.reason.splitlines()
    if table.run_id:
        yield f"run {table.run_id}"
    yield from map(str, table.changes)
    if table.stale_inputs:
        yield f"made from {', '.join(table.stale_inputs)}, which is not current"


def _print_next(statuses: Statuses, shards: Sequence[str], corrected: Sequence[str], *, has_refused: bool) -> None:
    commands = _next_commands(statuses, shards, corrected)
    width = max((len(command) for command in commands), default=0)
    lines = ["rename the refused shards"] if has_refused else []
    lines += [f"{command.ljust(width)}  # {comment}" for command, comment in commands.items()]
    print("\nnext: " + "\n      ".join(lines) if lines else "\nnothing to do")


def _next_commands(statuses: Statuses, shards: Sequence[str], corrected: Sequence[str]) -> dict[str, str]:
    """The commands that make the shards complete, each with a comment.

    ``corrected`` are the shards with corrections that no export has read yet.
    """
    states = count_states(statuses)
    work = states.keys() - {State.COMPLETE, State.ABSENT, State.REMOVED, State.RUNNING}
    named = _arguments([shard for shard in shards if shard in statuses and statuses[shard].state in work])
    exported = _arguments(corrected) if len(corrected) <= SHOWN_SHARDS else "--all"
    has_new = bool(work - {State.FAILED, State.STALE}) or _has_changed(statuses, inputs=True)
    candidates = [
        (f"run {named}", "rows that are unchanged are reused", bool(named)),
        ("run", "new and changed shards", has_new and not shards),
        ("run --failed", "after you have removed the causes", State.FAILED in states and not shards),
        ("run --stale", "rows that are unchanged are reused", _has_changed(statuses, inputs=False) and not shards),
        (f"export {exported}", "with the corrections since their last export", bool(corrected)),
        ("removals", "lists what is missing: check the source, or confirm it", State.ABSENT in states),
        ("retire --removed", "moves their outputs to the trash", State.REMOVED in states),
    ]
    return {f"caption-assets {command}": comment for command, comment, is_wanted in candidates if is_wanted}


def _arguments(shards: Sequence[str]) -> str:
    """Shards as arguments of a command."""
    return shlex.join(["--"] * any(shard.startswith("-") for shard in shards) + [*shards])


def _has_changed(statuses: Statuses, *, inputs: bool) -> bool:
    """Whether a stale shard has changed inputs, or else changed settings or weights."""
    stale = [table for status in statuses.values() if status.state is State.STALE for table in status.tables.values()]
    return any(change.is_input is inputs for table in stale for change in table.changes)


def _document(root: str, source: str, project: Project, statuses: Statuses) -> dict[str, object]:
    """The status as a JSON document."""
    return {
        "root": root,
        "source": source,
        "states": count_states(statuses),
        "tables": {name: asdict(counts) for name, counts in count_tables(statuses, project.tables).items()},
        "failed": [asdict(group) for group in failures(statuses)],
        "stale": [asdict(group) for group in staleness(statuses)],
        "not_recorded": [asdict(group) for group in unrecorded(statuses)],
        "shards": {shard: asdict(status) for shard, status in statuses.items()},
    }
