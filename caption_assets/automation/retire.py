"""The command that retires shards: it moves their outputs to the trash and removes their partitions.

The trash is the folder ``_trash`` of the root; ``caption-assets trash`` restores from it and empties it. After an
interruption the command can be repeated. The source is not changed: the sensor registers a shard again that is still
there, and it is captioned again.
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from uuid import uuid4

import dagster as dg

from caption_assets.automation.commands import confirm, open_instance
from caption_assets.automation.records import EVENTS_PER_QUERY, is_recorded, report_removed
from caption_assets.automation.shard_states import active_shards
from caption_assets.checks.stored_tables import caption_tables
from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.project_claim import check_claim
from caption_assets.dagster_lib.shard_events import first_names, is_removed, observed_versions
from caption_assets.errors import CaptionAssetsError
from caption_assets.export.index import shard_folder
from caption_assets.export.merged import remove_merged
from caption_assets.models.weights import format_size
from caption_assets.report.dashboard import update_dashboard
from caption_assets.report.gallery import gallery_path
from caption_assets.report.shard_summary import summary_path
from caption_assets.resources import build_storage
from caption_assets.settings import load_settings
from caption_assets.sources.shard import KEY_PATTERN, ShardError, list_shards
from caption_assets.store.checkpoints import checkpoint_folder
from caption_assets.store.corrections import corrections_folder
from caption_assets.store.lease import Leases, is_lease
from caption_assets.store.root import Root
from caption_assets.store.tables import table_path
from caption_assets.store.trash import move_to_trash

SHOWN = 20
"""Maximum number of shards that the command describes before it asks."""


class RetireError(CaptionAssetsError):
    """A shard that cannot be retired."""


@dataclass(frozen=True, slots=True)
class ShardOutputs:
    """The objects that were made from a shard."""

    shard: str
    tables: Sequence[str]
    """Names of the tables, including those of stages that earlier recipes had."""
    paths: Sequence[str]
    """Paths of the objects, relative to the root."""
    bytes: int

    def __str__(self) -> str:
        folders = ", ".join(sorted({path.split("/")[0] for path in self.paths}))
        size = f"{len(self.paths)} objects, {format_size(self.bytes)}, in {folders}" if folders else "no objects"
        return f"{self.shard}: {size}"


def retire_shards(names: Sequence[str], *, removed: bool, answer: int | None) -> None:
    """Describe the shards, ask for their number, and retire them.

    Args:
        names: their keys.
        removed: also retire all shards that were reported as removed from the source.
        answer: number of shards, if the command line gives it.

    Raises:
        CaptionAssetsError: if a shard cannot be retired, or the number is not confirmed.
    """
    settings = load_settings()
    project, storage = Project.of(settings), build_storage(settings)
    with open_instance() as instance:
        check_claim(instance, project, storage)
        root = storage.root()
        shards = list(dict.fromkeys([*names, *(removed_shards(instance, project) if removed else ())]))
        check(instance, project, shards)
        if not shards:
            print("no shards to retire")
            return
        outputs = [find_outputs(root, project, shard) for shard in shards]
        print_summary(outputs, gpu_hours(instance, project, outputs))
        print_present(storage.source(), shards)
        confirm(f"Type the number of shards ({len(shards)}) to retire them: ", len(shards), answer)
        for shard in shards:
            retire(instance, project, root, shard)
            print(f"retired {shard}")
        if any(path.startswith(shard_folder(one.shard)) for one in outputs for path in one.paths):
            remove_merged(root)  # it names the files that were moved
        update_dashboard(root)
    print(f"to restore them: caption-assets trash restore {' '.join(shards) if len(shards) <= SHOWN else 'SHARD ...'}")


def print_summary(outputs: Sequence[ShardOutputs], hours: float) -> None:
    """Print what would be retired."""
    for one in outputs[:SHOWN]:
        print(one)
    if len(outputs) > SHOWN:
        print(f"and {len(outputs) - SHOWN} more shards")
    objects, size = sum(len(one.paths) for one in outputs), sum(one.bytes for one in outputs)
    print(f"{len(outputs)} shards, {objects} objects, {format_size(size)}, {hours:.1f} GPU-hours")


def print_present(source: Root, shards: Collection[str]) -> None:
    """Print which of the shards are still in the source, if the source can be listed."""
    try:
        present = sorted(list_shards(source).keys & set(shards))
    except ShardError as error:
        print(f"cannot list the source: {error}; shards that are still in it will be registered and captioned again")
        return
    if present:
        print(f"still in the source; will be captioned again unless removed there: {first_names(present)}")


def removed_shards(instance: dg.DagsterInstance, project: Project) -> list[str]:
    """Registered shards that were reported as removed from the source."""
    observed = observed_versions(instance, project)
    return [shard for shard in project.registered(instance) if is_removed(observed.get(shard))]


def check(instance: dg.DagsterInstance, project: Project, shards: Sequence[str]) -> None:
    """Check that shards can be retired.

    Raises:
        RetireError: if a shard is not registered, or has an active run.
    """
    registered, active = set(project.registered(instance)), active_shards(instance, project)
    for shard in shards:
        if shard not in registered:
            raise RetireError(f"shard {shard!r} is not registered: check its name, and DAGSTER_HOME")
        if not KEY_PATTERN.fullmatch(shard):  # a partition that was added manually, such as one with a path as its name
            raise RetireError(f"{shard!r} is not a valid shard name: delete the partition in the UI")
        if shard in active:
            raise RetireError(f"shard {shard!r} has an active run: wait for its end, or terminate it")


def find_outputs(root: Root, project: Project, shard: str) -> ShardOutputs:
    """The objects that were made from a shard, without its lease.

    Raises:
        StoreError: if the root cannot be listed.
    """
    former = (name for name in caption_tables(root, shard) if name not in project.tables)
    tables = [*project.tables, *former]
    sizes = {path: size for folder in _folders(tables, shard) for path, size in root.sizes(folder).items()}
    sizes = {path: size for path, size in sizes.items() if not is_lease(path)}
    return ShardOutputs(shard, tables, sorted(sizes), sum(sizes.values()))


def gpu_hours(instance: dg.DagsterInstance, project: Project, outputs: Sequence[ShardOutputs]) -> float:
    """The GPU-hours of all runs that captioned the shards, from the materializations' metadata."""
    shards, seconds = [one.shard for one in outputs], 0.0
    for table in dict.fromkeys(table for one in outputs for table in one.tables):
        for materialization in _materializations(instance, project.key(table), shards):
            value = materialization.metadata.get("gpu_seconds")
            spent = value.value if isinstance(value, dg.FloatMetadataValue | dg.IntMetadataValue) else None
            if spent is not None and math.isfinite(spent) and spent > 0:  # users can report materializations
                seconds += spent
    return seconds / 3600


def _materializations(
    instance: dg.DagsterInstance, asset: dg.AssetKey, shards: Sequence[str]
) -> Iterator[dg.AssetMaterialization]:
    for start in range(0, len(shards), EVENTS_PER_QUERY):
        filters = dg.AssetRecordsFilter(asset_key=asset, asset_partitions=shards[start : start + EVENTS_PER_QUERY])
        cursor, has_more = None, True
        while has_more:
            page = instance.fetch_materializations(filters, limit=EVENTS_PER_QUERY, cursor=cursor)
            yield from (record.asset_materialization for record in page.records if record.asset_materialization)
            cursor, has_more = page.cursor, page.has_more


def retire(instance: dg.DagsterInstance, project: Project, root: Root, shard: str) -> None:
    """Move a shard's outputs to the trash, then remove its partition.

    The partition is removed last, so that an interrupted call can be repeated.

    Raises:
        LeaseHeld: if a run is captioning the shard, also one of another Dagster instance.
        StoreError: if an object cannot be moved.
    """
    with Leases(root, f"retire {uuid4().hex}") as leases:
        lease = leases.acquire(shard)
        outputs = find_outputs(root, project, shard)
        move_to_trash(root, shard, outputs.paths)
        for folder in _folders(outputs.tables, shard):
            root.prune(folder)
        for asset in (*map(project.key, outputs.tables), project.dataset):
            if is_recorded(instance, asset, shard):
                report_removed(instance, asset, shard)
        instance.delete_dynamic_partition(project.partitions_name, shard)
        # Before the release of the lease, after which another process may acquire it.
        root.remove_folder(checkpoint_folder(shard))
        leases.release(lease)


def _folders(tables: Sequence[str], shard: str) -> list[str]:
    files = [*(table_path(table, shard) for table in tables), gallery_path(shard), summary_path(shard)]
    return [*map(posixpath.dirname, files), shard_folder(shard), corrections_folder(shard), checkpoint_folder(shard)]
