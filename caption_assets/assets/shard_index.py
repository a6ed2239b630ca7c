"""The source's shards, as an external asset, and the asset that registers them as partitions."""

from collections.abc import Collection
from hashlib import sha256

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from caption_assets.assets.failures import clear_failures, shards_failed
from caption_assets.assets.partitions import SHARDS, SHARDS_NAME
from caption_assets.clips.shard import list_shards, shard_content
from caption_assets.resources import Storage

REMOVED = "removed"
"""Reported as the version of a shard that is no longer in the source."""
SHARDS_SPEC = dg.AssetSpec(
    "shards",
    partitions_def=SHARDS,
    description="The dataset's shards as they lie in the source. Their observed data version is their content.",
)


@dg.asset(
    description="Lists the source and registers each shard as a partition.",
    kinds={"dagster"},
)
def shard_index(context: dg.AssetExecutionContext, storage: Storage) -> dg.MaterializeResult[None]:
    """Register the shards that the source holds, and report what they contain, where that is new."""
    with clear_failures():
        source = storage.source()
        listing = list_shards(source)
        versions = {shard.key: shard_content(source, shard).version for shard in listing.shards}
    known = set(context.instance.get_dynamic_partitions(SHARDS_NAME))
    context.instance.add_dynamic_partitions(SHARDS_NAME, list(versions))
    observed = observed_versions(context.instance)
    for key, version in versions.items():
        if observed.get(key) != version:
            context.log_event(observation(key, version))
    if listing.refused:
        raise shards_failed(f"{len(listing.refused)} shards are not registered, the others are", listing.refused)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(sha256(repr(sorted(versions.items())).encode()).hexdigest()[:16]),
        metadata={
            "shards": len(versions),
            "new": sorted(set(versions) - known)[:100],
            "source": dg.MetadataValue.path(source.address("")),
        },
    )


def observation(shard: str, version: str) -> dg.AssetObservation:
    """What is reported of a shard whose content has changed; never of one whose content has not.

    So the time of a shard's last observation is that of its last change.
    """
    return dg.AssetObservation(SHARDS_SPEC.key, partition=shard, tags={DATA_VERSION_TAG: version})


def observed_versions(instance: dg.DagsterInstance, shards: Collection[str] | None = None) -> dict[str, str]:
    """The version last observed of each shard, or of some; in one query, for there may be thousands."""
    tags = instance.event_log_storage.get_latest_tags_by_partition(
        SHARDS_SPEC.key,
        dg.DagsterEventType.ASSET_OBSERVATION,
        [DATA_VERSION_TAG],
        asset_partitions=None if shards is None else list(shards),
    )
    return {shard: found[DATA_VERSION_TAG] for shard, found in tags.items()}
