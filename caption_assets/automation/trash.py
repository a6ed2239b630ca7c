"""The command for the trash, which holds what was made of retired shards.

    python -m caption_assets.automation.trash                         what is in it
    python -m caption_assets.automation.trash --restore SHARD ...     bring back what was last retired of these shards
    python -m caption_assets.automation.trash --restore SHARD --at TIME      or what was retired at another time
    python -m caption_assets.automation.trash --empty DAYS            remove for good what was retired so many days ago

A shard that is brought back is registered again, and its tables are recorded. --empty asks for the number of entries;
--yes NUMBER answers for a script. Settings come from the environment, and so does DAGSTER_HOME.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from uuid import uuid4

import dagster as dg

from caption_assets.automation.confirmation import confirm
from caption_assets.automation.differences import find_differences, settle
from caption_assets.automation.records import read_records
from caption_assets.automation.shard_states import shards_under_way
from caption_assets.captioning.stages import TABLE_NAMES
from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.project_claim import check_claim
from caption_assets.errors import CaptionAssetsError
from caption_assets.models.weights import in_words
from caption_assets.resources import build_storage
from caption_assets.settings import Settings, load_settings
from caption_assets.sources.shard import KEY_PATTERN
from caption_assets.store.lease import Leases
from caption_assets.store.root import Root
from caption_assets.store.tables import stored_shards
from caption_assets.store.trash import Entry, TrashError, bring_back, list_entries, remove_entry


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--restore", nargs="+", metavar="SHARD", help="bring back")
    action.add_argument("--empty", type=float, metavar="DAYS", help="remove for good what is so old; 0 for all")
    parser.add_argument("--at", metavar="TIME", help="of the entry, as it is listed")
    parser.add_argument("--yes", type=int, metavar="NUMBER", help="of entries, to be removed without a question")
    options = parser.parse_args()
    try:
        settings = load_settings()
        storage = build_storage(settings)
        root = storage.root()
        if options.restore:
            with dg.DagsterInstance.get() as instance:
                check_claim(instance, Project(settings.project), storage)
                for shard in options.restore:
                    restore(instance, settings, root, shard, options.at)
        elif options.empty is not None:
            empty(root, options.empty, options.yes)
        else:
            show(list_entries(root))
    except CaptionAssetsError as error:
        sys.exit(f"error: {error}")


def show(entries: Sequence[Entry]) -> None:
    """List entries, and what they take."""
    for entry in entries:
        note = "" if entry.is_complete else "; interrupted: retire or restore the shard again"
        size = in_words(sum(entry.sizes.values()))
        print(f"{entry.shard} at {entry.time}: {len(entry.sizes)} objects, {size}{note}")
    print(f"{len(entries)} entries, {in_words(sum(sum(entry.sizes.values()) for entry in entries))}")


def restore(instance: dg.DagsterInstance, settings: Settings, root: Root, shard: str, at: str | None = None) -> None:
    """Bring back what was retired of a shard, register it, and record its tables.

    Args:
        instance: Dagster's.
        settings: name the project.
        root: which holds the trash.
        shard: its key.
        at: time of the entry; None for the last.

    Raises:
        TrashError: if there is no such entry, if a run is under way for the shard, or if it was made again since.
        LeaseHeld: if a run is captioning the shard, also one of another Dagster instance.
        StoreError: if something cannot be moved.
    """
    project = Project(settings.project)
    if not KEY_PATTERN.fullmatch(shard):
        raise TrashError(f"{shard!r} is no name of a shard: check it")
    entries = [entry for entry in list_entries(root, shard) if at in (None, entry.time)]
    if not entries:
        raise TrashError(f"there is nothing of shard {shard!r}{f' at {at}' if at else ''} in the trash: list it")
    if shard in shards_under_way(instance, project):
        raise TrashError(f"a run is under way for shard {shard!r}: wait for its end, or terminate it")
    with Leases(root, f"restore {uuid4().hex}") as leases:
        lease = leases.take(shard)
        bring_back(root, entries[-1])
        instance.add_dynamic_partitions(project.partitions_name, [shard])
        stored = {table: stored_shards(root, table) & {shard} for table in TABLE_NAMES}
        records = {table: read_records(instance, project, table, [shard]) for table in TABLE_NAMES}
        differences = find_differences(root, [shard], stored, records)
        for one, result in settle(instance, settings, root, differences):
            print(f"{one.table} of {shard}: {result}")
        leases.release(lease)
    print(f"{shard} is back")


def empty(root: Root, days: float, answer: int | None) -> None:
    """Remove for good the entries that are at least ``days`` old, once their number was typed.

    Raises:
        NotConfirmed: if it was not.
        StoreError: if something cannot be removed.
    """
    old = [entry for entry in list_entries(root) if entry.age_days >= days]
    show(old)
    if not old:
        return
    confirm(f"Type the number of entries ({len(old)}) to remove them for good: ", len(old), answer)
    for entry in old:
        remove_entry(root, entry)
        print(f"{entry.shard} at {entry.time} is removed")


if __name__ == "__main__":
    main()
