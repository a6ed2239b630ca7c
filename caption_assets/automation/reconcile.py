"""The command that compares Dagster's event log with the tables in the root, and corrects the log."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import dagster as dg

from caption_assets.automation.commands import confirm, open_instance
from caption_assets.automation.differences import Difference, Kind, find_differences, resolve
from caption_assets.automation.records import read_records
from caption_assets.automation.shard_states import active_shards
from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.project_claim import check_claim
from caption_assets.dagster_lib.shard_events import first_names
from caption_assets.resources import build_storage
from caption_assets.settings import Settings, load_settings
from caption_assets.store.root import Root
from caption_assets.store.tables import stored_shards

REPORTED_REMOVED = (Kind.NOT_STORED, Kind.DAMAGED)
FIXABLE = (*REPORTED_REMOVED, Kind.NOT_RECORDED)


def reconcile_event_log(*, fix: bool, answer: int | None) -> None:
    """Print the differences of all shards without an active run.

    Args:
        fix: correct the event log.
        answer: number of tables to be recorded as removed, if the command line gives it.

    Raises:
        CaptionAssetsError: if root or instance cannot be read, or the number is not confirmed.
    """
    settings = load_settings()
    root = build_storage(settings).root_to_read()
    with open_instance() as instance:
        differences = compare(instance, settings, root)
        if fix:
            correct(instance, settings, root, differences, answer)
        elif any(one.kind in FIXABLE for one in differences):
            print("to correct the event log, run `caption-assets reconcile --fix`")


def compare(instance: dg.DagsterInstance, settings: Settings, root: Root) -> list[Difference]:
    """Compare all registered shards without an active run, and print the differences.

    Raises:
        ProjectClash: if the instance has the project's name for another root or source.
        StoreError: if the root cannot be read.
    """
    project = Project.of(settings)
    check_claim(instance, project, build_storage(settings))
    registered, active = project.registered(instance), active_shards(instance, project)
    shards = [shard for shard in registered if shard not in active]
    stored = {table: stored_shards(root, table) for table in project.tables}
    records = {table: read_records(instance, project, table, shards) for table in project.tables}
    differences = find_differences(root, shards, stored, records)
    print(f"{root.url}: compared {len(shards)} shards; skipped {len(active)} with active runs")
    _print_summary(differences, stored)
    if orphans := sorted(frozenset[str]().union(*stored.values()) - frozenset(registered)):
        print(f"tables of {len(orphans)} unregistered shards: {first_names(orphans)}")
    return differences


def correct(
    instance: dg.DagsterInstance, settings: Settings, root: Root, differences: Sequence[Difference], answer: int | None
) -> None:
    """Correct the event log, after the number of tables to be recorded as removed is confirmed, if there are any.

    Raises:
        NotConfirmed: if the number is not confirmed.
    """
    if lost := sum(one.kind in REPORTED_REMOVED for one in differences):
        confirm(f"Type the number of tables ({lost}) to record them as removed: ", lost, answer)
    for difference, result in resolve(instance, settings, root, differences):
        print(f"{difference.table} of {difference.shard}: {result}")


def _print_summary(differences: Sequence[Difference], stored: Mapping[str, Collection[str]]) -> None:
    for table, shards_of_table in stored.items():
        print(f"{table}: {len(shards_of_table)} stored")
        for kind in Kind:
            shards = [one.shard for one in differences if (one.table, one.kind) == (table, kind)]
            if shards:
                print(f"  {len(shards)} {kind}: {first_names(shards)}")
