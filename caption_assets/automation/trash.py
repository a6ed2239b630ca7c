"""The commands for the trash, which holds the outputs of retired shards: list, restore, empty.

A restored shard is registered again, and its tables are recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

import dagster as dg

from caption_assets.automation.commands import confirm, open_instance
from caption_assets.automation.differences import find_differences, resolve
from caption_assets.automation.records import read_records
from caption_assets.automation.shard_states import active_shards
from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.project_claim import check_claim
from caption_assets.models.weights import format_size
from caption_assets.report.dashboard import update_dashboard
from caption_assets.resources import build_storage
from caption_assets.settings import Settings, load_settings
from caption_assets.sources.shard import KEY_PATTERN
from caption_assets.store.lease import Leases
from caption_assets.store.root import Root
from caption_assets.store.tables import stored_shards
from caption_assets.store.trash import Entry, TrashError, list_entries, remove_entry, restore_entry


def list_trash() -> None:
    """Print the entries of the trash with their size."""
    _print_entries(list_entries(build_storage(load_settings()).root()))


def _print_entries(entries: Sequence[Entry]) -> None:
    for entry in entries:
        note = "" if entry.is_complete else "; interrupted: retire or restore the shard again"
        size = format_size(sum(entry.sizes.values()))
        print(f"{entry.shard} at {entry.time}: {len(entry.sizes)} objects, {size}{note}")
    print(f"{len(entries)} entries, {format_size(sum(sum(entry.sizes.values()) for entry in entries))}")


def restore_shards(shards: Sequence[str], at: str | None) -> None:
    """Restore several shards.

    Args:
        shards: their keys.
        at: time of the entries; None for the latest.

    Raises:
        CaptionAssetsError: if a shard cannot be restored.
    """
    settings = load_settings()
    storage = build_storage(settings)
    root = storage.root()
    with open_instance() as instance:
        check_claim(instance, Project.of(settings), storage)
        for shard in shards:
            restore(instance, settings, root, shard, at)
        update_dashboard(root)


def restore(instance: dg.DagsterInstance, settings: Settings, root: Root, shard: str, at: str | None = None) -> None:
    """Restore the outputs of a shard, register it, and record its tables.

    Args:
        instance: the Dagster instance.
        settings: settings of the project.
        root: root that contains the trash.
        shard: its key.
        at: time of the entry; None for the latest.

    Raises:
        TrashError: if there is no such entry, if the shard has an active run, or if it was captioned again since.
        LeaseHeld: if a run is captioning the shard, also one of another Dagster instance.
        StoreError: if an object cannot be moved.
    """
    project = Project.of(settings)
    if not KEY_PATTERN.fullmatch(shard):
        raise TrashError(f"{shard!r} is not a valid shard name: check it")
    entries = [entry for entry in list_entries(root, shard) if at in (None, entry.time)]
    if not entries:
        raise TrashError(
            f"the trash has no entry for shard {shard!r}{f' at {at}' if at else ''}: see `caption-assets trash list`"
        )
    if shard in active_shards(instance, project):
        raise TrashError(f"shard {shard!r} has an active run: wait for its end, or terminate it")
    with Leases(root, f"restore {uuid4().hex}") as leases:
        lease = leases.acquire(shard)
        restore_entry(root, entries[-1])
        instance.add_dynamic_partitions(project.partitions_name, [shard])
        stored = {table: stored_shards(root, table) & {shard} for table in project.tables}
        records = {table: read_records(instance, project, table, [shard]) for table in project.tables}
        differences = find_differences(root, [shard], stored, records)
        for difference, result in resolve(instance, settings, root, differences):
            print(f"{difference.table} of {shard}: {result}")
        leases.release(lease)
    print(f"restored {shard}")


def empty_trash(days: float, answer: int | None) -> None:
    """Delete the entries that are at least ``days`` old, after their number is confirmed.

    Raises:
        NotConfirmed: if the number is not confirmed.
        StoreError: if an object cannot be deleted.
    """
    root = build_storage(load_settings()).root()
    entries = [entry for entry in list_entries(root) if entry.age_days >= days]
    _print_entries(entries)
    if not entries:
        return
    confirm(f"Type the number of entries ({len(entries)}) to delete them for good: ", len(entries), answer)
    for entry in entries:
        remove_entry(root, entry)
        print(f"deleted {entry.shard} at {entry.time}")
