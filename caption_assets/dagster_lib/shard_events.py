"""The events of the source's shards: registration, changed content and removal."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import dagster as dg

from caption_assets.dagster_lib.private_dagster import DATA_VERSION_TAG
from caption_assets.dagster_lib.project import Project

MAX_NAMES = 5
"""Maximum number of shards that a message names."""
REMOVED = "removed"
"""Observed version of a shard that the sensor no longer finds in the source."""
REMOVAL_CONFIRMED = "removed, confirmed"
"""Observed version of a removed shard after the removal was confirmed."""


def registration(project: Project, shard: str, version: str) -> dg.AssetMaterialization:
    """The event that registers a shard. It is a materialization, because the UI counts no other partitions."""
    return dg.AssetMaterialization(project.shards, partition=shard, tags={DATA_VERSION_TAG: version})


def observation(project: Project, shard: str, version: str) -> dg.AssetObservation:
    """The event that reports a changed shard.

    It is reported only when a shard changes, so that a shard's last observation is its last change.
    """
    return dg.AssetObservation(project.shards, partition=shard, tags={DATA_VERSION_TAG: version})


def is_removed(version: str | None) -> bool:
    """Whether an observed version is that of a removed shard."""
    return version in (REMOVED, REMOVAL_CONFIRMED)


def observed_versions(
    instance: dg.DagsterInstance, project: Project, shards: Collection[str] | None = None
) -> dict[str, str]:
    """The last observed version of each shard, or of those in ``shards``, in one query."""
    tags = instance.event_log_storage.get_latest_tags_by_partition(
        project.shards,
        dg.DagsterEventType.ASSET_OBSERVATION,
        [DATA_VERSION_TAG],
        asset_partitions=None if shards is None else list(shards),
    )
    return {shard: found[DATA_VERSION_TAG] for shard, found in tags.items()}


def first_names(shards: Sequence[str]) -> str:
    """The first shards and the number of the others, for a message."""
    return ", ".join(shards[:MAX_NAMES]) + (f" and {len(shards) - MAX_NAMES} more" * (len(shards) > MAX_NAMES))
