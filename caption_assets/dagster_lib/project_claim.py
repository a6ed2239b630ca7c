"""The claim of a project on a Dagster instance: the root and the source that the project's name belongs to.

The instance stores shards, runs and materializations by name. With two roots or two sources under one project name,
each would treat the other's shards as removed, and show the other's captions as its own.
"""

from __future__ import annotations

import os.path
from dataclasses import dataclass

import dagster as dg
from fsspec.core import split_protocol, strip_protocol

from caption_assets.dagster_lib.project import Project
from caption_assets.errors import CaptionAssetsError
from caption_assets.resources import Storage

LOCAL = (None, "file", "local")
"""fsspec protocols of local folders."""


class ProjectClash(CaptionAssetsError):
    """A project name that belongs to another root or source on the instance."""


def claim(instance: dg.DagsterInstance, project: Project, storage: Storage) -> None:
    """Claim the project's name for a root and a source, before a shard is registered. The first claim wins.

    Call it after the source was listed: a mistyped source claims nothing. A project of a release that claimed the root
    alone claims its source here.

    Raises:
        ProjectClash: if another root or source has claimed the name.
        StoreError: if the name is free and the root is not writable; a mistyped root claims nothing.
    """
    check_claim(instance, project, storage)
    claim_root(instance, project, storage)
    _add(instance, _source(project, storage))
    check_claim(instance, project, storage)  # another process may have been faster


def claim_root(instance: dg.DagsterInstance, project: Project, storage: Storage) -> None:
    """Claim the project's name for a root alone, before something is recorded that needs no source.

    Raises:
        ProjectClash: if another root or source has claimed the name.
        StoreError: if the name is free and the root is not writable.
    """
    root = _root(project, storage)
    if not instance.get_dynamic_partitions(root.partitions_name):
        storage.root()
        _add(instance, root)
    check_claim(instance, project, storage)


def check_claim(instance: dg.DagsterInstance, project: Project, storage: Storage) -> None:
    """Check that no other root or source has claimed the project's name.

    Raises:
        ProjectClash: if another one has.
    """
    for wanted in (_root(project, storage), _source(project, storage)):
        claims = instance.get_dynamic_partitions(wanted.partitions_name)  # in order of creation
        if claims and not _is_same(_normalize(claims[0]), wanted.url):
            named = f"CAPTION_PROJECT={project.name}"
            name = named if project.name else "the default project (CAPTION_PROJECT is not set)"
            raise ProjectClash(
                f"in this Dagster instance {name} belongs to {wanted.setting}={claims[0]}, not to "
                f"{wanted.setting}={wanted.url}: set DAGSTER_HOME to an instance of its own (`caption-assets init DIR` "
                "makes one), or CAPTION_PROJECT to a name that no other project of this instance has; if the project "
                "itself has moved, run `caption-assets move`"
            )


def move(instance: dg.DagsterInstance, project: Project, storage: Storage) -> None:
    """Transfer the project's claim to another root and source. Copies and deletes nothing.

    Raises:
        StoreError: if the root cannot be written.
    """
    storage.root()
    for folder in (_root(project, storage), _source(project, storage)):
        for url in instance.get_dynamic_partitions(folder.partitions_name):
            instance.delete_dynamic_partition(folder.partitions_name, url)
    claim(instance, project, storage)


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder that a project claims."""

    setting: str
    """Environment variable of its URL."""
    url: str
    partitions_name: str
    """Name of the partitions that store the claim. No asset uses them; an instance has no other storage for text."""


def _root(project: Project, storage: Storage) -> _Folder:
    return _Folder("CAPTION_ROOT", _normalize(storage.root_url), f"{project.partitions_name}/claim")


def _source(project: Project, storage: Storage) -> _Folder:
    return _Folder("CAPTION_SOURCE", _normalize(storage.source_url), f"{project.partitions_name}/claim/source")


def _add(instance: dg.DagsterInstance, folder: _Folder) -> None:
    if not instance.get_dynamic_partitions(folder.partitions_name):
        instance.add_dynamic_partitions(folder.partitions_name, [folder.url])


def _normalize(url: str) -> str:
    """Normalize a local folder to its absolute path, and a URL to one without final slashes."""
    if _is_local(url):
        return os.path.normpath(str(strip_protocol(url)))
    protocol, path = split_protocol(url)
    return f"{'s3' if protocol == 's3a' else protocol}://{path.rstrip('/')}"


def _is_same(claimed: str, wanted: str) -> bool:
    """Whether two normalized URLs are one folder. A symbolic link is the folder that it points to."""
    if claimed == wanted:
        return True
    return _is_local(claimed) and _is_local(wanted) and os.path.realpath(claimed) == os.path.realpath(wanted)


def _is_local(url: str) -> bool:
    return split_protocol(url)[0] in LOCAL
