"""Retire shards: remove their partitions, and all that was made of them.

    python -m caption_assets.automation.retire --removed          those that the sensor found gone from the source
    python -m caption_assets.automation.retire SHARD [SHARD ...]

Without --yes it only says what it would remove. Settings come from the environment, as ever, and so does DAGSTER_HOME.
The source is never touched: a shard that still lies there is registered again when it is next looked at.
"""

from __future__ import annotations

import argparse
import posixpath
import sys
from collections.abc import Sequence

import dagster as dg

from caption_assets.assets.claim import check_claim
from caption_assets.assets.project import Project
from caption_assets.assets.shard_index import is_removed, observed_versions
from caption_assets.automation.shard_states import shards_under_way
from caption_assets.errors import CaptionAssetsError
from caption_assets.export.index import shard_folder
from caption_assets.report.gallery import gallery_path
from caption_assets.resources import build_storage
from caption_assets.settings import load_settings
from caption_assets.store.checkpoints import checkpoint_folder
from caption_assets.store.root import Root
from caption_assets.store.tables import Table, table_path


class RetireError(CaptionAssetsError):
    """Shards that cannot be retired."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="*", metavar="SHARD", help="its partition key")
    parser.add_argument("--removed", action="store_true", help="all that are gone from the source")
    parser.add_argument("--yes", action="store_true", help="do it")
    options = parser.parse_args()
    try:
        settings = load_settings()
        project, storage = Project(settings.project), build_storage(settings)
        with dg.DagsterInstance.get() as instance:
            check_claim(instance, project, storage)
            root = storage.root()
            shards = [*options.shards, *(removed_shards(instance, project) if options.removed else ())]
            check(instance, project, shards)
            for shard in shards:
                print(f"{shard}: {', '.join(found(root, shard)) or 'nothing was made of it'}")
                if options.yes:
                    retire(instance, project, root, shard)
    except CaptionAssetsError as error:
        sys.exit(f"error: {error}")
    print(f"{len(shards)} shards {'retired' if options.yes else 'would be retired: say --yes'}")


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
        if shard in busy:
            raise RetireError(f"a run is under way for shard {shard!r}: wait for its end, or terminate it")


def found(root: Root, shard: str) -> list[str]:
    """Addresses of the folders that were made for a shard."""
    return [root.address(folder) for folder in _folders(shard) if root.exists(folder)]


def retire(instance: dg.DagsterInstance, project: Project, root: Root, shard: str) -> None:
    """Remove what was made of a shard, and its partition last: broken off, it can be done again.

    Raises:
        StoreError: if something cannot be removed.
    """
    for folder in _folders(shard):
        root.remove_folder(folder)
    instance.delete_dynamic_partition(project.partitions_name, shard)


def _folders(shard: str) -> list[str]:
    files = [*(table_path(table, shard) for table in Table), gallery_path(shard)]
    return [*map(posixpath.dirname, files), shard_folder(shard), checkpoint_folder(shard)]


if __name__ == "__main__":
    main()
