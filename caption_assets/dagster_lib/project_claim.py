"""The claim of a project on a Dagster instance: the root for which the instance has the project's name.

The instance stores shards, runs and materializations by name. Two roots with one project name would each take the
other's shards for removed, and outdate the other's captions for ever.
"""

from __future__ import annotations

import os.path

import dagster as dg
from fsspec.core import split_protocol, strip_protocol

from caption_assets.dagster_lib.project import Project
from caption_assets.errors import CaptionAssetsError
from caption_assets.resources import Storage

LOCAL = (None, "file", "local")
"""Protocols of local folders."""


class ProjectClash(CaptionAssetsError):
    """A project name that the instance has for another root."""


def claim(instance: dg.DagsterInstance, project: Project, storage: Storage) -> None:
    """Claim the project's name for a root; the first claim stands. To be called before a shard is registered.

    Raises:
        ProjectClash: if the name stands for another root.
        StoreError: if the name is free and the root cannot be written: a mistyped root claims nothing.
    """
    if not instance.get_dynamic_partitions(_key(project)):
        storage.root()
        instance.add_dynamic_partitions(_key(project), [_normalize(storage.root_url)])
    check_claim(instance, project, storage)


def check_claim(instance: dg.DagsterInstance, project: Project, storage: Storage) -> None:
    """Compare a root with the one that has claimed the project's name, if one has.

    Raises:
        ProjectClash: if they differ.
    """
    claims = instance.get_dynamic_partitions(_key(project))  # in the order in which they were made
    wanted = _normalize(storage.root_url)
    if claims and claims[0] != wanted:
        name = f"CAPTION_PROJECT={project.name}" if project.name else "the default project (CAPTION_PROJECT is not set)"
        raise ProjectClash(
            f"in this Dagster instance {name} stands for CAPTION_ROOT={claims[0]}, not for CAPTION_ROOT={wanted}: set "
            "CAPTION_PROJECT to a name that no other project of this instance has, or DAGSTER_HOME to another "
            "instance; if the project itself has moved, run `caption-assets move`"
        )


def move(instance: dg.DagsterInstance, project: Project, storage: Storage) -> None:
    """Claim the project's name for another root than before. Nothing is copied or removed.

    Raises:
        StoreError: if the root cannot be written.
    """
    storage.root()
    for root in instance.get_dynamic_partitions(_key(project)):
        instance.delete_dynamic_partition(_key(project), root)
    claim(instance, project, storage)


def _key(project: Project) -> str:
    """Name of the partitions that keep the claim, which no asset has: the one list of text that an instance offers."""
    return f"{project.partitions_name}/claim"


def _normalize(url: str) -> str:
    """A local folder as its absolute path without detours, so that it is the same one however it is written."""
    return os.path.normpath(strip_protocol(url)) if split_protocol(url)[0] in LOCAL else url.rstrip("/")
