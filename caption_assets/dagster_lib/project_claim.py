"""The claim of a project on a Dagster instance: the root that the project's name belongs to.

The instance stores shards, runs and materializations by name. With two roots under one project name, each would treat
the other's shards as removed and mark the other's captions stale.
"""

from __future__ import annotations

import os.path

import dagster as dg
from fsspec.core import split_protocol, strip_protocol

from caption_assets.dagster_lib.project import Project
from caption_assets.errors import CaptionAssetsError
from caption_assets.resources import Storage

LOCAL = (None, "file", "local")
"""fsspec protocols of local folders."""


class ProjectClash(CaptionAssetsError):
    """A project name that belongs to another root on the instance."""


def claim(instance: dg.DagsterInstance, project: Project, storage: Storage) -> None:
    """Claim the project's name for a root, before a shard is registered. The first claim wins.

    Raises:
        ProjectClash: if another root has claimed the name.
        StoreError: if the name is free and the root is not writable; a mistyped root claims nothing.
    """
    if not instance.get_dynamic_partitions(_key(project)):
        storage.root()
        instance.add_dynamic_partitions(_key(project), [_normalize(storage.root_url)])
    check_claim(instance, project, storage)


def check_claim(instance: dg.DagsterInstance, project: Project, storage: Storage) -> None:
    """Check that no other root has claimed the project's name.

    Raises:
        ProjectClash: if another root has.
    """
    claims = instance.get_dynamic_partitions(_key(project))  # in order of creation
    wanted = _normalize(storage.root_url)
    if claims and claims[0] != wanted:
        name = f"CAPTION_PROJECT={project.name}" if project.name else "the default project (CAPTION_PROJECT is not set)"
        raise ProjectClash(
            f"in this Dagster instance {name} belongs to CAPTION_ROOT={claims[0]}, not to CAPTION_ROOT={wanted}: set "
            "CAPTION_PROJECT to a name that no other project of this instance has, or DAGSTER_HOME to another "
            "instance; if the project itself has moved, run `caption-assets move`"
        )


def move(instance: dg.DagsterInstance, project: Project, storage: Storage) -> None:
    """Transfer the project's claim to another root. Copies and deletes nothing.

    Raises:
        StoreError: if the root cannot be written.
    """
    storage.root()
    for root in instance.get_dynamic_partitions(_key(project)):
        instance.delete_dynamic_partition(_key(project), root)
    claim(instance, project, storage)


def _key(project: Project) -> str:
    """Name of the partitions that store the claim. No asset uses them; an instance has no other storage for text."""
    return f"{project.partitions_name}/claim"


def _normalize(url: str) -> str:
    """Normalize a local folder to its absolute path, and a URL to one without a final slash."""
    return os.path.normpath(strip_protocol(url)) if split_protocol(url)[0] in LOCAL else url.rstrip("/")
