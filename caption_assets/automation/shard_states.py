"""What Dagster knows of the shards: which are whole, which are under way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import dagster as dg
from dagster._core.definitions.data_version import CODE_VERSION_TAG, DATA_VERSION_TAG, get_input_data_version_tag
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
)

from caption_assets.assets.project import Project
from caption_assets.assets.shard_index import REMOVED, observed_versions

CHUNK = 500
"""Events that are fetched by one query."""


@dataclass(frozen=True, slots=True)
class ShardStates:
    """The shards at one moment, by key."""

    registered: Sequence[str]
    """All partitions, in their order."""
    order: Sequence[str]
    """Those of them that are still in the source."""
    content: Mapping[str, str]
    """Their observed version."""
    changed: Mapping[str, int]
    """The event that reported it."""
    manifests: Mapping[str, str]
    """Data version of the manifest of each shard that has one of its present content."""
    made: Mapping[str, int]
    """The event that recorded it."""
    captioned: frozenset[str]
    """Shards whose captions of both stages were made from their present manifest."""

    @property
    def without_manifest(self) -> dict[str, str]:
        """Shards whose manifest is missing or outdated, with the version of their content."""
        return {shard: self.content[shard] for shard in self.order if shard not in self.manifests}

    @property
    def without_captions(self) -> dict[str, str]:
        """Shards that have a manifest and whose captions are missing or outdated, with the manifest's version."""
        return {shard: version for shard, version in self.manifests.items() if shard not in self.captioned}

    @property
    def oldest_waiting(self) -> str | None:
        """The shard that has waited longest for its captions; None if none waits."""
        waiting = [shard for shard in self.order if shard not in self.captioned]
        return min(waiting, key=self.changed.__getitem__, default=None)


def read_states(instance: dg.DagsterInstance, project: Project) -> ShardStates:
    """The states of a project's shards.

    A few queries for all, whatever their number: Dagster's own would take one for each.
    """
    content = observed_versions(instance, project)
    changed = _latest(instance, project.shards, dg.DagsterEventType.ASSET_OBSERVATION)
    registered = project.registered(instance)
    # A partition that was added by hand has no content until the sensor has looked at it.
    order = [shard for shard in registered if content.get(shard, REMOVED) != REMOVED]
    made = _latest(instance, project.manifest, dg.DagsterEventType.ASSET_MATERIALIZATION)
    versions = instance.event_log_storage.get_latest_tags_by_partition(
        project.manifest, dg.DagsterEventType.ASSET_MATERIALIZATION, [DATA_VERSION_TAG]
    )
    # A change is reported before, or by, the run that first reads it.
    manifests = {shard: versions[shard][DATA_VERSION_TAG] for shard in order if made.get(shard, 0) > changed[shard]}
    stages = [_made_from(instance, project, stage, made, manifests) for stage in project.stages]
    return ShardStates(registered, order, content, changed, manifests, made, frozenset.intersection(*stages))


def predicted_work(instance: dg.DagsterInstance, project: Project, events: Sequence[int]) -> tuple[int, int]:
    """Windows and visual tokens of several shards, by the events that recorded their manifests."""
    manifests = dg.AssetRecordsFilter(asset_key=project.manifest, storage_ids=events)
    windows = tokens = 0
    for record in instance.fetch_materializations(manifests, limit=len(events)).records:
        assert record.asset_materialization is not None  # that is what was asked for
        metadata = record.asset_materialization.metadata
        windows += int(str(metadata["rows_ok"].value))
        tokens += int(str(metadata["predicted_visual_tokens"].value))
    return windows, tokens


def _latest(instance: dg.DagsterInstance, key: dg.AssetKey, kind: dg.DagsterEventType) -> Mapping[str, int]:
    return instance.event_log_storage.get_latest_storage_id_by_partition(key, kind)


def _made_from(
    instance: dg.DagsterInstance,
    project: Project,
    stage: dg.AssetKey,
    made: Mapping[str, int],
    manifests: Mapping[str, str],
) -> frozenset[str]:
    """Shards whose captions of a stage are of the present manifest.

    Captions that are younger than the manifest are: no run records others. Of those that are older it has to be asked
    which manifest they were made from, for a manifest may have been made again and be the same.
    """
    captions = _latest(instance, stage, dg.DagsterEventType.ASSET_MATERIALIZATION)
    fresh = {shard for shard in manifests if captions.get(shard, 0) > made[shard]}
    older = [captions[shard] for shard in manifests if shard in captions and shard not in fresh]
    for begin in range(0, len(older), CHUNK):
        chunk = dg.AssetRecordsFilter(asset_key=stage, storage_ids=older[begin : begin + CHUNK])
        for record in instance.fetch_materializations(chunk, limit=CHUNK).records:
            tags = (record.asset_materialization and record.asset_materialization.tags) or {}
            shard = str(record.partition_key)
            if tags.get(get_input_data_version_tag(project.manifest)) == manifests[shard]:
                fresh.add(shard)
    return frozenset(fresh)


def has_weights(instance: dg.DagsterInstance, project: Project, code_version: str) -> bool:
    """Whether the weights were materialized of the model that is wanted now."""
    event = instance.get_latest_materialization_event(project.weights)
    tags = (event and event.asset_materialization and event.asset_materialization.tags) or {}
    return tags.get(CODE_VERSION_TAG) == code_version


def shards_under_way(instance: dg.DagsterInstance, project: Project) -> frozenset[str]:
    """Shards of all of the project's runs that wait or are at work, whoever launched them."""
    order = project.registered(instance)
    own = {project.manifest, *project.stages, project.dataset}
    places = {shard: place for place, shard in enumerate(order)}
    found: set[str] = set()
    for run in instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES)):
        selected = {*(run.asset_selection or ()), *(check.asset_key for check in run.asset_check_selection or ())}
        if selected and not selected & own:
            continue  # another project's shards may have the same names
        first, last = (run.tags.get(tag) for tag in (ASSET_PARTITION_RANGE_START_TAG, ASSET_PARTITION_RANGE_END_TAG))
        if first in places and last in places:
            found |= set(order[places[first] : places[last] + 1])
        elif shard := run.tags.get(PARTITION_NAME_TAG):
            found.add(shard)
    return frozenset(found)
