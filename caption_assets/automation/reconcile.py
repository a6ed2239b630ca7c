"""The command that compares Dagster's event log with the root, for all shards, and settles the differences.

    python -m caption_assets.automation.reconcile             what is recorded and not stored, and the other way round
    python -m caption_assets.automation.reconcile --mend      the same, and correct the event log

With --mend, a table that is recorded and not stored is reported as removed, so that the schedule requests it again. The
command asks for the number of these tables; --yes NUMBER answers for a script. A table that is stored and not recorded
is reported with the versions in its file, so that it is not made again. No table is changed. Shards of runs under way
are left out. Settings come from the environment, and so does DAGSTER_HOME.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence

import dagster as dg

from caption_assets.assets.shard_index import first_names
from caption_assets.automation.confirmation import confirm
from caption_assets.automation.differences import Difference, Kind, find_differences, settle
from caption_assets.automation.records import read_records
from caption_assets.automation.shard_states import shards_under_way
from caption_assets.captioning.stages import TABLE_NAMES
from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.project_claim import check_claim
from caption_assets.errors import CaptionAssetsError
from caption_assets.resources import build_storage
from caption_assets.settings import Settings, load_settings
from caption_assets.store.root import Root
from caption_assets.store.tables import stored_shards

REPORTED_REMOVED = (Kind.NOT_STORED, Kind.DAMAGED)
MENDED = (*REPORTED_REMOVED, Kind.NOT_RECORDED)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mend", action="store_true", help="correct the event log")
    parser.add_argument("--yes", type=int, metavar="NUMBER", help="of tables, to be reported as removed unasked")
    options = parser.parse_args()
    try:
        settings = load_settings()
        storage = build_storage(settings)
        with dg.DagsterInstance.get() as instance:
            found = compare(instance, settings, storage.root_to_read())
            if options.mend:
                mend(instance, settings, storage.root_to_read(), found, options.yes)
            elif any(one.kind in MENDED for one in found):
                print("say --mend to correct the event log")
    except CaptionAssetsError as error:
        sys.exit(f"error: {error}")


def compare(instance: dg.DagsterInstance, settings: Settings, root: Root) -> list[Difference]:
    """Compare all registered shards with no run under way, and print the differences.

    Raises:
        ProjectClash: if the instance has the project's name for another root.
        StoreError: if the root cannot be read.
    """
    project = Project(settings.project)
    check_claim(instance, project, build_storage(settings))
    registered, busy = project.registered(instance), shards_under_way(instance, project)
    shards = [shard for shard in registered if shard not in busy]
    stored = {table: stored_shards(root, table) for table in TABLE_NAMES}
    records = {table: read_records(instance, project, table, shards) for table in TABLE_NAMES}
    found = find_differences(root, shards, stored, records)
    print(f"{root.url}: {len(shards)} shards compared, {len(busy)} left out, since runs are under way for them")
    _print_summary(found, stored)
    if orphans := sorted(frozenset[str]().union(*stored.values()) - frozenset(registered)):
        print(f"tables of {len(orphans)} shards that are not registered: {first_names(orphans)}")
    return found


def mend(
    instance: dg.DagsterInstance, settings: Settings, root: Root, found: Sequence[Difference], answer: int | None
) -> None:
    """Correct the event log, once the number of tables that will be reported as removed was typed, if there are any.

    Raises:
        NotConfirmed: if it was not.
    """
    if lost := sum(one.kind in REPORTED_REMOVED for one in found):
        confirm(f"Type the number of tables ({lost}) to report them as removed: ", lost, answer)
    for one, result in settle(instance, settings, root, found):
        print(f"{one.table} of {one.shard}: {result}")


def _print_summary(found: Iterable[Difference], stored: Mapping[str, Collection[str]]) -> None:
    differences = list(found)
    for table in TABLE_NAMES:
        print(f"{table}: {len(stored[table])} stored")
        for kind in Kind:
            shards = [one.shard for one in differences if (one.table, one.kind) == (table, kind)]
            if shards:
                print(f"  {len(shards)} {kind}: {first_names(shards)}")


if __name__ == "__main__":
    main()
