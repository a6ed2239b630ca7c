"""The states of the shards: which have a manifest and captions of their present content, which are under way.

A table counts if Dagster's event log has a record of it that names the versions it was made from, and if it is stored.
Where one of the two is missing, the shard is made again; what is stored and unchanged is reused by that run.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import dagster as dg

from caption_assets.assets.clip_manifest import is_of_this_schema
from caption_assets.assets.shard_index import REMOVED, is_removed, observed_versions
from caption_assets.automation.records import Metadata, Record, read_records
from caption_assets.captioning.stages import TABLE_NAMES
from caption_assets.dagster_lib.private import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    CODE_VERSION_TAG,
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
    PARTITION_NAME_TAG,
)
from caption_assets.dagster_lib.project import SHARDS, Project
from caption_assets.errors import CaptionAssetsError
from caption_assets.models.mirror import read_manifest
from caption_assets.models.weights import WeightsError, joint_version
from caption_assets.settings import Settings
from caption_assets.store.root import Root
from caption_assets.store.tables import CLIP_MANIFEST, stored_shards
from caption_assets.store.versions import TableVersions

NOT_FINISHED = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.SUSPENDED,
    dg.DagsterRunStatus.CANCELING,
]
MAX_WINDOWS = 1_000_000
"""Windows of a shard beyond which a manifest's metadata is not believed: 123 days of video, in windows of 256 frames at
24 frames a second."""
MAX_WINDOW_TOKENS = 1 << 20
"""Visual tokens of a window beyond which it is not believed: 32 times the context of the project's models."""


class RootEmpty(CaptionAssetsError):
    """A root that holds nothing, though tables were published in it."""


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
    stored: Mapping[str, frozenset[str]]
    """The shards that have a table in the root."""
    records: Mapping[str, Mapping[str, Record]]
    """The records of their tables."""
    manifests: Mapping[str, str]
    """Data version of the manifest of each shard that has one of its present content."""
    captioned: frozenset[str]
    """Shards whose captions of both stages were made from their present manifest."""

    @property
    def without_manifest(self) -> dict[str, str]:
        """Shards whose manifest is missing or outdated, with the version of their content."""
        missing = [shard for shard in self.order if shard not in self.manifests]
        return {shard: self.content[shard] + self._removal(CLIP_MANIFEST, shard) for shard in missing}

    @property
    def without_captions(self) -> dict[str, str]:
        """Shards that have a manifest and whose captions are missing or outdated, with the manifest's version."""
        missing = {shard: version for shard, version in self.manifests.items() if shard not in self.captioned}
        return {shard: version + self._removal(TABLE_NAMES[-1], shard) for shard, version in missing.items()}

    @property
    def oldest_waiting(self) -> str | None:
        """The shard that has waited longest for its captions; None if none waits."""
        waiting = [shard for shard in self.order if shard not in self.captioned]
        return min(waiting, key=lambda shard: self.changed.get(shard, 0), default=None)

    def _removal(self, table: str, shard: str) -> str:
        """The end of a version under which a table is requested: after its removal the attempts count anew."""
        record = self.records[table].get(shard)
        return f" after {record.event}" if record and record.removed else ""


def read_states(instance: dg.DagsterInstance, project: Project, root: Root) -> ShardStates:
    """The states of a project's shards.

    It takes a few queries and one listing for each table; Dagster's own methods would take queries for each shard.

    Raises:
        RootEmpty: if the root is empty, and there are records of tables in it.
        StoreError: if the root cannot be listed.
    """
    content = observed_versions(instance, project)
    changed = instance.event_log_storage.get_latest_storage_id_by_partition(
        project.shards, dg.DagsterEventType.ASSET_OBSERVATION
    )
    registered = project.registered(instance)
    # A partition that was added by hand has no content until the sensor has looked at it.
    order = [shard for shard in registered if not is_removed(content.get(shard, REMOVED))]
    stored = {table: stored_shards(root, table) for table in TABLE_NAMES}
    records = {table: read_records(instance, project, table, order) for table in TABLE_NAMES}
    _check_root(root, stored, records)
    manifests = {
        shard: record.versions.data
        for shard, record in records[CLIP_MANIFEST].items()
        if shard in stored[CLIP_MANIFEST] and record.versions and is_present(record.versions, content[shard])
    }
    present: Mapping[str, str] = manifests
    for upstream, stage in pairwise(TABLE_NAMES):
        present = _made_from(present, upstream, records[stage], stored[stage])
    captioned = frozenset(present)
    return ShardStates(registered, order, content, changed, stored, records, manifests, captioned)


def _made_from(
    present: Mapping[str, str], upstream: str, records: Mapping[str, Record], stored: Collection[str]
) -> dict[str, str]:
    """The data versions of a stored table's shards that were made from the present version of the table before it."""
    return {
        shard: record.versions.data
        for shard, record in records.items()
        if shard in stored
        and shard in present
        and record.versions
        and record.versions.inputs.get(upstream) == present[shard]
    }


def is_present(manifest: TableVersions, content: str) -> bool:
    """Whether a manifest was made from a shard's present content, and this release reads it."""
    return manifest.inputs.get(SHARDS) == content and is_of_this_schema(manifest.code)


def _check_root(root: Root, stored: Mapping[str, Collection[str]], records: Mapping[str, Mapping[str, Record]]) -> None:
    """Refuse to believe that all tables are gone, where the root may only not be mounted, or be another."""
    recorded = sum(not record.removed for found in records.values() for record in found.values())
    contents = [name for name in root.names("") if not name.startswith("_")]  # runs write _runs before anything else
    if recorded and not any(stored.values()) and not contents:
        raise RootEmpty(
            f"CAPTION_ROOT is {root.url!r}, which is empty, though Dagster has records of {recorded} tables in it: "
            "check the variable, and that the folder is mounted; if the tables are gone for good, run "
            "`caption-assets reconcile --fix`"
        )


def predicted_work(instance: dg.DagsterInstance, project: Project, events: Sequence[int]) -> tuple[int, int] | None:
    """Windows and visual tokens of several shards, by the events that recorded their manifests.

    None if an event does not tell them, or tells what cannot be: it may be somebody else's.
    """
    filters = dg.AssetRecordsFilter(asset_key=project.manifest, storage_ids=events)
    found = instance.fetch_materializations(filters, limit=len(events)).records if events else ()
    windows = tokens = 0
    for record in found:
        metadata = (record.asset_materialization and record.asset_materialization.metadata) or {}
        its_windows = _count(metadata.get("rows_ok"), MAX_WINDOWS)
        its_tokens = _count(metadata.get("predicted_visual_tokens"), MAX_WINDOWS * MAX_WINDOW_TOKENS)
        if its_windows is None or its_tokens is None or its_tokens > its_windows * MAX_WINDOW_TOKENS:
            return None
        windows += its_windows
        tokens += its_tokens
    return (windows, tokens) if len(found) == len(events) else None


def _count(value: dg.MetadataValue | None, limit: int) -> int | None:
    """A count in somebody's metadata; None if it is none."""
    number = value.value if isinstance(value, dg.IntMetadataValue | dg.FloatMetadataValue) else None
    if number is None or not math.isfinite(number) or number != int(number) or not 0 <= number <= limit:
        return None
    return int(number)


def has_weights(instance: dg.DagsterInstance, project: Project, root: Root, settings: Settings) -> bool:
    """Whether the weights of the model and of its adapter are stored. What is stored and not recorded is recorded.

    Raises:
        StoreError: if the root cannot be read.
    """
    try:
        manifests = [read_manifest(root, checkpoint) for checkpoint in settings.checkpoints]
    except WeightsError:
        return False
    event = instance.get_latest_materialization_event(project.weights)
    tags = (event and event.asset_materialization and event.asset_materialization.tags) or {}
    wanted = {CODE_VERSION_TAG: settings.weights_code, DATA_VERSION_TAG: joint_version(manifests)}
    if not wanted.items() <= tags.items():
        model, files = manifests[0], sum(len(manifest.files) for manifest in manifests)
        metadata: Metadata = {"model": model.hub_id, "revision": model.revision, "files": files}
        tags = wanted | {DATA_VERSION_IS_USER_PROVIDED_TAG: "true"}
        reported = dg.AssetMaterialization(project.weights, "Reported from the stored weights.", metadata, tags=tags)
        instance.report_runless_asset_event(reported)
    return True


def has_active_run(instance: dg.DagsterInstance, asset: dg.AssetKey) -> bool:
    """Whether a run that makes an asset waits or is at work, whoever launched it."""
    runs = instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED))
    return any(asset in (run.asset_selection or ()) for run in runs)


def active_shards(instance: dg.DagsterInstance, project: Project) -> frozenset[str]:
    """Shards of all of the project's runs that wait or are at work, whoever launched them."""
    order = project.registered(instance)
    own = {project.manifest, *project.stages, project.dataset}
    places = {shard: place for place, shard in enumerate(order)}
    found: set[str] = set()
    for run in instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED)):
        selected = {*(run.asset_selection or ()), *(check.asset_key for check in run.asset_check_selection or ())}
        if selected and not selected & own:
            continue  # another project's shards may have the same names
        first, last = (run.tags.get(tag) for tag in (ASSET_PARTITION_RANGE_START_TAG, ASSET_PARTITION_RANGE_END_TAG))
        if first in places and last in places:
            found |= set(order[places[first] : places[last] + 1])
        elif shard := run.tags.get(PARTITION_NAME_TAG):
            found.add(shard)
    return frozenset(found)
