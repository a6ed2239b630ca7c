"""The command that retires shards: moves what was made of them into the trash, and removes their partitions.

    python -m caption_assets.automation.retire --removed          shards that are gone from the source
    python -m caption_assets.automation.retire SHARD [SHARD ...]

It shows what would be moved and asks for the number of shards; --yes NUMBER answers for a script. What was moved lies
below ``_trash`` in the root; ``python -m caption_assets.automation.trash`` brings it back or removes it for good. After
an interruption the command can be repeated. Settings come from the environment, and so does DAGSTER_HOME. The source is
never touched: a shard that still lies there is registered and captioned again when it is next looked at.
"""

from __future__ import annotations

import argparse
import math
import posixpath
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from uuid import uuid4

import dagster as dg

from caption_assets.assets.shard_index import first_names, is_removed, observed_versions
from caption_assets.automation.confirmation import confirm
from caption_assets.automation.records import CHUNK, is_recorded, report_removed
from caption_assets.automation.shard_states import shards_under_way
from caption_assets.captioning.stages import TABLE_NAMES
from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.project_claim import check_claim
from caption_assets.errors import CaptionAssetsError
from caption_assets.export.index import shard_folder
from caption_assets.models.weights import in_words
from caption_assets.report.gallery import gallery_path
from caption_assets.resources import build_storage
from caption_assets.settings import load_settings
from caption_assets.sources.shard import KEY_PATTERN, ShardError, list_shards
from caption_assets.store.checkpoints import checkpoint_folder
from caption_assets.store.lease import Leases, is_lease
from caption_assets.store.root import Root
from caption_assets.store.tables import table_path
from caption_assets.store.trash import move_to_trash

SHOWN = 20
"""Shards that the command describes before it asks."""


class RetireError(CaptionAssetsError):
    """Shards that cannot be retired."""


@dataclass(frozen=True, slots=True)
class Made:
    """What was made of a shard."""

    shard: str
    paths: Sequence[str]
    """Of all objects, relative to the root."""
    bytes: int

    def __str__(self) -> str:
        folders = sorted({path.split("/")[0] for path in self.paths})
        what = f"{len(self.paths)} objects, {in_words(self.bytes)}, in {', '.join(folders)}" if folders else "nothing"
        return f"{self.shard}: {what}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="*", metavar="SHARD", help="its partition key")
    parser.add_argument("--removed", action="store_true", help="all that are gone from the source")
    parser.add_argument("--yes", type=int, metavar="NUMBER", help="of shards, to be retired without a question")
    options = parser.parse_args()
    try:
        settings = load_settings()
        project, storage = Project(settings.project), build_storage(settings)
        with dg.DagsterInstance.get() as instance:
            check_claim(instance, project, storage)
            root = storage.root()
            removed = removed_shards(instance, project) if options.removed else []
            shards = list(dict.fromkeys([*options.shards, *removed]))
            check(instance, project, shards)
            if not shards:
                print("no shards to retire")
                return
            made = [find_made(root, shard) for shard in shards]
            print_summary(made, gpu_hours(instance, project, shards))
            print_present(storage.source(), shards)
            confirm(f"Type the number of shards ({len(shards)}) to retire them: ", len(shards), options.yes)
            for shard in shards:
                retire(instance, project, root, shard)
                print(f"{shard} is retired")
            names = " ".join(shards) if len(shards) <= SHOWN else "SHARD ..."
            print(f"to bring them back: python -m caption_assets.automation.trash --restore {names}")
    except CaptionAssetsError as error:
        sys.exit(f"error: {error}")


def print_summary(made: Sequence[Made], hours: float) -> None:
    """What would be retired."""
    for one in made[:SHOWN]:
        print(one)
    if len(made) > SHOWN:
        print(f"and {len(made) - SHOWN} more shards")
    objects, size = sum(len(one.paths) for one in made), sum(one.bytes for one in made)
    print(f"{len(made)} shards, {objects} objects, {in_words(size)}, made in {hours:.1f} GPU-hours")


def print_present(source: Root, shards: Collection[str]) -> None:
    """Which of the shards are still in the source, if it can be listed."""
    try:
        present = sorted(list_shards(source).keys & set(shards))
    except ShardError as error:
        print(f"shards that are still in the source will be registered again; which these are is unknown: {error}")
        return
    if present:
        print(f"still in the source, and captioned again unless removed there: {first_names(present)}")


def removed_shards(instance: dg.DagsterInstance, project: Project) -> list[str]:
    """Registered shards that were reported as gone from the source."""
    observed = observed_versions(instance, project)
    return [shard for shard in project.registered(instance) if is_removed(observed.get(shard))]


def check(instance: dg.DagsterInstance, project: Project, shards: Sequence[str]) -> None:
    """Refuse what cannot be retired.

    Raises:
        RetireError: if a shard is not registered, or a run is at work on it.
    """
    known, busy = set(project.registered(instance)), shards_under_way(instance, project)
    for shard in shards:
        if shard not in known:
            raise RetireError(f"{shard!r} is no registered shard: check its name, and that DAGSTER_HOME is right")
        if not KEY_PATTERN.fullmatch(shard):  # a partition that was added by hand, with a path in its name, say
            raise RetireError(f"{shard!r} cannot be the name of a shard: delete the partition in the UI")
        if shard in busy:
            raise RetireError(f"a run is under way for shard {shard!r}: wait for its end, or terminate it")


def find_made(root: Root, shard: str) -> Made:
    """All that was made of a shard, save its lease.

    Raises:
        StoreError: if the root cannot be listed.
    """
    sizes = {path: size for folder in _folders(shard) for path, size in root.sizes(folder).items()}
    sizes = {path: size for path, size in sizes.items() if not is_lease(path)}
    return Made(shard, sorted(sizes), sum(sizes.values()))


def gpu_hours(instance: dg.DagsterInstance, project: Project, shards: Collection[str]) -> float:
    """GPU-hours that all runs took for the shards' captions, as their records tell."""
    seconds = 0.0
    for stage in project.stages:
        for materialization in _materializations(instance, stage, list(shards)):
            value = materialization.metadata.get("gpu_seconds")
            spent = value.value if isinstance(value, dg.FloatMetadataValue | dg.IntMetadataValue) else None
            if spent is not None and math.isfinite(spent) and spent > 0:  # anybody may write a record
                seconds += spent
    return seconds / 3600


def _materializations(
    instance: dg.DagsterInstance, asset: dg.AssetKey, shards: Sequence[str]
) -> Iterator[dg.AssetMaterialization]:
    for begin in range(0, len(shards), CHUNK):
        filters = dg.AssetRecordsFilter(asset_key=asset, asset_partitions=shards[begin : begin + CHUNK])
        cursor, has_more = None, True
        while has_more:
            page = instance.fetch_materializations(filters, limit=CHUNK, cursor=cursor)
            yield from (record.asset_materialization for record in page.records if record.asset_materialization)
            cursor, has_more = page.cursor, page.has_more


def retire(instance: dg.DagsterInstance, project: Project, root: Root, shard: str) -> None:
    """Move what was made of a shard into the trash, and remove its partition last: broken off, it can be done again.

    Raises:
        LeaseHeld: if a run is captioning the shard, also one of another Dagster instance.
        StoreError: if something cannot be moved.
    """
    with Leases(root, f"retire {uuid4().hex}") as leases:
        lease = leases.take(shard)
        move_to_trash(root, shard, find_made(root, shard).paths)
        for folder in _folders(shard):
            root.prune(folder)
        for asset in (project.manifest, *project.stages, project.dataset):
            if is_recorded(instance, asset, shard):
                report_removed(instance, asset, shard)
        instance.delete_dynamic_partition(project.partitions_name, shard)
        root.remove_folder(
            checkpoint_folder(shard)
        )  # with the lease, and not after its release: it may be another's then
        leases.release(lease)


def _folders(shard: str) -> list[str]:
    files = [*(table_path(table, shard) for table in TABLE_NAMES), gallery_path(shard)]
    return [*map(posixpath.dirname, files), shard_folder(shard), checkpoint_folder(shard)]


if __name__ == "__main__":
    main()
