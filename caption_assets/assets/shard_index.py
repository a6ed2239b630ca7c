"""The source's shards as an external asset, and the asset that registers them as partitions."""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any

import dagster as dg

from caption_assets.dagster_lib.failures import as_dagster_failure, shards_failed
from caption_assets.dagster_lib.metadata import markdown_table, meanings
from caption_assets.dagster_lib.project import SOURCE_GROUP, Project
from caption_assets.dagster_lib.project_claim import claim
from caption_assets.dagster_lib.shard_events import MAX_NAMES, first_names, observation, observed_versions, registration
from caption_assets.dagster_lib.status_metadata import STATUS_MEANINGS
from caption_assets.dagster_lib.termination import stoppable
from caption_assets.resources import Storage
from caption_assets.sources.shard import Listing, list_shards, refuse_loose_videos, shard_content
from caption_assets.store.root import Root

MAX_LISTED = 100
"""Maximum number of names in a metadata list."""
FUTURE_REMEDY = "set the clock of the machine that wrote them, and run `touch` on the files"
"""Remedy for modification times in the future."""

MEANINGS = {
    "shards": "Number of registered shards in the source",
    "new": f"Shards registered by this run, the first {MAX_LISTED} of them",
    "source": "Address of the source",
    "skipped": "Number of entries in the source that are not shards",
    "skipped_entries": "These entries, by reason",
    "empty_folders": "Folders without files, which are not registered until they have some",
    "modified_in_the_future": f"Shards with modification times in the future. Remedy: {FUTURE_REMEDY}",
    **STATUS_MEANINGS,
}
"""Meaning of each metadata entry."""


def build_shards(project: Project) -> dg.AssetSpec:
    """Build the external asset of the source's shards."""
    return dg.AssetSpec(
        project.shards,
        partitions_def=project.partitions,
        deps=[project.shard_index],
        description="The shards in the source, which the project only reads. A shard's observed data version is a hash "
        "of its content, so that a changed shard marks its manifest and captions stale.",
        group_name=SOURCE_GROUP,
    )


def build_shard_index(project: Project) -> dg.AssetsDefinition:
    """Build the asset that registers the source's shards."""

    @dg.asset(
        key=project.shard_index,
        description="Lists the source and registers each shard as a partition. Materialize it first; with "
        "CAPTION_AUTOMATE, the sensor new_shards does the same.",
        metadata=meanings(MEANINGS),
        group_name=SOURCE_GROUP,
        kinds={"dagster"},
    )
    def shard_index(context: dg.AssetExecutionContext, storage: Storage) -> dg.MaterializeResult[None]:
        with stoppable(context), as_dagster_failure():
            source = storage.source()
            listing = list_shards(source)
            refuse_loose_videos(source, listing)
            claim(context.instance, project, storage)
            contents = {shard.key: shard_content(source, shard) for shard in listing.shards}
        known = set(project.registered(context.instance))
        # An empty folder is not a shard yet: a store's console creates a folder as an empty object "name/".
        versions = {key: content.version for key, content in contents.items() if content.changed or key in known}
        future = [key for key, content in contents.items() if content.future]
        if future:
            context.log.warning(f"modification times in the future in shards {first_names(future)}: {FUTURE_REMEDY}")
        for reason, count, some in listing.describe_skipped(MAX_NAMES):
            context.log.info(f"skipped: {reason}: {count} ({some})")
        if empty := [key for key in contents if key not in versions]:
            context.log.info(f"skipped: empty folders: {len(empty)} ({first_names(empty)})")
        context.instance.add_dynamic_partitions(project.partitions_name, list(versions))
        observed = observed_versions(context.instance, project)
        recorded = context.instance.get_materialized_partitions(project.shards)
        for key, version in versions.items():
            if key not in recorded:
                context.instance.report_runless_asset_event(registration(project, key, version))
            if observed.get(key) != version:
                context.log_event(observation(project, key, version))
        if listing.refused:
            raise shards_failed(listing.refused, len(listing.shards) + len(listing.refused))
        new = set(versions) - known
        context.log.info(f"shards in {source.address('')}: {len(versions)} ({len(new)} new)")
        return dg.MaterializeResult(
            data_version=dg.DataVersion(sha256(repr(sorted(versions.items())).encode()).hexdigest()[:16]),
            metadata={
                **index_metadata(source, len(versions), new),
                **_anomalies(listing, empty, future),
            },
        )

    return shard_index


def _anomalies(listing: Listing, empty: Sequence[str], future: Sequence[str]) -> dict[str, Any]:
    """Metadata of entries in the source that are not registered or look wrong."""
    rows = listing.describe_skipped(MAX_NAMES)
    found: dict[str, Any] = {}
    if rows:
        found["skipped"] = sum(count for _, count, _ in rows)
        table = [(reason, str(count), some) for reason, count, some in rows]
        found["skipped_entries"] = markdown_table(["reason", "entries", "names"], table)
    if empty:
        found["empty_folders"] = empty[:MAX_LISTED]
    if future:
        found["modified_in_the_future"] = future[:MAX_LISTED]
    return found


def index_metadata(source: Root, shards: int, new: Iterable[str]) -> dict[str, Any]:
    """Metadata of a listing of the source."""
    return {"shards": shards, "new": sorted(new)[:MAX_LISTED], "source": dg.MetadataValue.path(source.address(""))}
