"""The states of the shards: current manifests, current captions and active runs.

A table counts if it is stored, and if Dagster's event log has a record of it with the versions of its inputs. Otherwise
the shard is processed again; that run reuses stored rows that are unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import dagster as dg

from caption_assets.assets.clip_manifest import is_of_this_schema
from caption_assets.automation.records import Record, read_records
from caption_assets.dagster_lib.metadata import Metadata
from caption_assets.dagster_lib.private_dagster import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    CODE_VERSION_TAG,
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
    PARTITION_NAME_TAG,
)
from caption_assets.dagster_lib.project import SHARDS, Project
from caption_assets.dagster_lib.shard_events import REMOVED, is_removed, observed_versions
from caption_assets.errors import CaptionAssetsError
from caption_assets.models.mirror import read_weights_manifest
from caption_assets.models.weights import WeightsError, joint_version
from caption_assets.settings import Settings
from caption_assets.store.root import Root
from caption_assets.store.tables import CLIP_MANIFEST, stored_shards
from caption_assets.store.versions import TableVersions

UNFINISHED = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.SUSPENDED,
    dg.DagsterRunStatus.CANCELING,
]
MAX_WINDOWS = 1_000_000
"""Maximum plausible number of windows of a shard: 123 days of video, in windows of 256 frames at 24 fps."""
MAX_WINDOW_TOKENS = 1 << 20
"""Maximum plausible number of visual tokens of a window: 32 times the context of the project's models."""


class RootEmpty(CaptionAssetsError):
    """An empty root, although tables are recorded."""


@dataclass(frozen=True, slots=True)
class Missing:
    """The tables to request for a shard: the missing ones and those that they need."""

    tables: Sequence[str]
    """Names of the tables, each after its inputs."""
    version: str
    """Version of the input that they are made from. A removal of the last table changes it, which resets the number of
    attempts."""

    @property
    def last(self) -> str:
        """The table by which attempts are counted."""
        return self.tables[-1]


@dataclass(frozen=True, slots=True)
class ShardStates:
    """The shards of a project at one moment."""

    project: Project
    registered: Sequence[str]
    """All partitions, in order of registration."""
    order: Sequence[str]
    """The partitions that are not reported as removed from the source."""
    content: Mapping[str, str]
    """Observed version of each shard."""
    changed: Mapping[str, int]
    """Storage id of the event that reported it."""
    stored: Mapping[str, frozenset[str]]
    """The shards with a stored table, by table."""
    records: Mapping[str, Mapping[str, Record]]
    """The records, by table and shard."""
    manifests: Mapping[str, str]
    """Data version of each current manifest. A manifest is current if it was made from the shard's present content."""
    captions: Mapping[str, Collection[str]]
    """The shards with current captions, by stage. Captions are current if all their inputs are."""

    @property
    def captioned(self) -> frozenset[str]:
        """Shards with current captions in all stages."""
        return frozenset(self.manifests).intersection(*self.captions.values())

    @property
    def without_manifest(self) -> dict[str, Missing]:
        """Shards without a current manifest."""
        waiting = (shard for shard in self.order if shard not in self.manifests)
        return {shard: self._missing(shard, [CLIP_MANIFEST], self.content[shard]) for shard in waiting}

    @property
    def without_captions(self) -> dict[str, Missing]:
        """Shards with a current manifest, and without current captions in all stages.

        The stages that a missing one needs are requested too: their failed rows are retried, without which a stage
        whose upstream rows failed would fail again. Their other rows are reused.
        """
        found = {}
        for shard, version in self.manifests.items():
            if missing := [stage for stage, shards in self.captions.items() if shard not in shards]:
                found[shard] = self._missing(shard, self.project.with_upstream(missing), version)
        return found

    @property
    def oldest_waiting(self) -> str | None:
        """The shard that has waited longest for its captions; None if all are captioned."""
        captioned = self.captioned
        waiting = [shard for shard in self.order if shard not in captioned]
        return min(waiting, key=lambda shard: self.changed.get(shard, 0), default=None)

    def _missing(self, shard: str, tables: Sequence[str], version: str) -> Missing:
        record = self.records[tables[-1]].get(shard)
        return Missing(tables, f"{version} after {record.event}" if record and record.removed else version)


def read_states(instance: dg.DagsterInstance, project: Project, root: Root) -> ShardStates:
    """Read the states of a project's shards.

    It takes a few queries and one listing for each table; Dagster's public methods need queries for each shard.

    Raises:
        RootEmpty: if the root is empty, although tables are recorded.
        StoreError: if the root cannot be listed.
    """
    content = observed_versions(instance, project)
    changed = instance.event_log_storage.get_latest_storage_id_by_partition(
        project.shards, dg.DagsterEventType.ASSET_OBSERVATION
    )
    registered = project.registered(instance)
    # A partition that was added manually has no content until the sensor has observed it.
    order = [shard for shard in registered if not is_removed(content.get(shard, REMOVED))]
    stored = {table: stored_shards(root, table) for table in project.tables}
    records = {table: read_records(instance, project, table, order) for table in project.tables}
    _check_root(root, stored, records)
    manifests = {
        shard: record.versions.data
        for shard, record in records[CLIP_MANIFEST].items()
        if shard in stored[CLIP_MANIFEST] and record.versions and is_current(record.versions, content[shard])
    }
    current: dict[str, Mapping[str, str]] = {CLIP_MANIFEST: manifests}
    for stage, inputs in project.inputs.items():
        made_from = {table: current[table] for table in inputs if table in current}  # the weights are no table
        current[stage] = _made_from(made_from, records[stage], stored[stage])
    captions = {stage: current[stage].keys() for stage in project.inputs}
    return ShardStates(project, registered, order, content, changed, stored, records, manifests, captions)


def _made_from(
    inputs: Mapping[str, Mapping[str, str]], records: Mapping[str, Record], stored: Collection[str]
) -> dict[str, str]:
    """Data versions of a table, by shard, where it is stored and was made from the current versions of its inputs."""

    def is_made_from_current(shard: str, made_from: Mapping[str, str]) -> bool:
        return all(shard in current and made_from.get(table) == current[shard] for table, current in inputs.items())

    return {
        shard: record.versions.data
        for shard, record in records.items()
        if shard in stored and record.versions and is_made_from_current(shard, record.versions.inputs)
    }


def is_current(manifest: TableVersions, content: str) -> bool:
    """Whether a manifest was made from a shard's present content, with the schema of this release."""
    return manifest.inputs.get(SHARDS) == content and is_of_this_schema(manifest.code)


def _check_root(root: Root, stored: Mapping[str, Collection[str]], records: Mapping[str, Mapping[str, Record]]) -> None:
    """Raise an error if all tables are missing: the root may not be mounted, or CAPTION_ROOT may be wrong."""
    recorded = sum(not record.removed for found in records.values() for record in found.values())
    contents = [name for name in root.names("") if not name.startswith("_")]  # a run creates _runs first
    if recorded and not any(stored.values()) and not contents:
        raise RootEmpty(
            f"CAPTION_ROOT={root.url!r} is empty, but Dagster has records of {recorded} tables: check the variable and "
            "the mount; if the tables were deleted for good, run `caption-assets reconcile --fix`"
        )


def predicted_work(instance: dg.DagsterInstance, project: Project, events: Sequence[int]) -> tuple[int, int] | None:
    """Number of windows and visual tokens of several shards, from the events that recorded their manifests.

    None if an event lacks these numbers or has implausible ones: users can report materializations in the UI.
    """
    filters = dg.AssetRecordsFilter(asset_key=project.manifest, storage_ids=events)
    found = instance.fetch_materializations(filters, limit=len(events)).records if events else ()
    windows = tokens = 0
    for record in found:
        metadata = (record.asset_materialization and record.asset_materialization.metadata) or {}
        shard_windows = _count(metadata.get("rows_ok"), MAX_WINDOWS)
        shard_tokens = _count(metadata.get("predicted_visual_tokens"), MAX_WINDOWS * MAX_WINDOW_TOKENS)
        if shard_windows is None or shard_tokens is None or shard_tokens > shard_windows * MAX_WINDOW_TOKENS:
            return None
        windows += shard_windows
        tokens += shard_tokens
    return (windows, tokens) if len(found) == len(events) else None


def _count(value: dg.MetadataValue | None, limit: int) -> int | None:
    """The value of a count in an event's metadata; None if it is not one."""
    number = value.value if isinstance(value, dg.IntMetadataValue | dg.FloatMetadataValue) else None
    if number is None or not math.isfinite(number) or number != int(number) or not 0 <= number <= limit:
        return None
    return int(number)


def has_weights(instance: dg.DagsterInstance, project: Project, root: Root, settings: Settings) -> bool:
    """Whether the weights of all models are stored. Stored weights are recorded if they are not.

    Raises:
        StoreError: if the root cannot be read.
    """
    try:
        manifests = [read_weights_manifest(root, checkpoint) for checkpoint in settings.checkpoints]
    except WeightsError:
        return False
    event = instance.get_latest_materialization_event(project.weights)
    video = manifests[: len(settings.video_checkpoints)]
    tags = (event and event.asset_materialization and event.asset_materialization.tags) or {}
    wanted = {CODE_VERSION_TAG: settings.weights_code, DATA_VERSION_TAG: joint_version(video)}
    if not wanted.items() <= tags.items():
        model, files = manifests[0], sum(len(manifest.files) for manifest in manifests)
        metadata: Metadata = {"model": model.hub_id, "revision": model.revision, "files": files}
        tags = wanted | {DATA_VERSION_IS_USER_PROVIDED_TAG: "true"}
        reported = dg.AssetMaterialization(project.weights, "Recorded from the stored weights.", metadata, tags=tags)
        instance.report_runless_asset_event(reported)
    return True


def has_active_run(instance: dg.DagsterInstance, asset: dg.AssetKey) -> bool:
    """Whether an unfinished run includes an asset, whoever launched it."""
    runs = instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
    return any(asset in (run.asset_selection or ()) for run in runs)


def active_shards(instance: dg.DagsterInstance, project: Project) -> frozenset[str]:
    """Shards of the project's unfinished runs, whoever launched them."""
    order = project.registered(instance)
    own = {project.manifest, *project.stages, project.dataset}
    positions = {shard: position for position, shard in enumerate(order)}
    found: set[str] = set()
    for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)):
        selected = {*(run.asset_selection or ()), *(check.asset_key for check in run.asset_check_selection or ())}
        if selected and not selected & own:
            continue  # another project's shards may have the same names
        first, last = (run.tags.get(tag) for tag in (ASSET_PARTITION_RANGE_START_TAG, ASSET_PARTITION_RANGE_END_TAG))
        if first in positions and last in positions:
            found |= set(order[positions[first] : positions[last] + 1])
        elif shard := run.tags.get(PARTITION_NAME_TAG):
            found.add(shard)
    return frozenset(found)
