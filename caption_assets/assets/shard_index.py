"""The source's shards, as an external asset, and the asset that registers them as partitions."""

from hashlib import sha256

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from caption_assets.assets.failures import clear_failures
from caption_assets.assets.partitions import SHARDS
from caption_assets.clips.shard import content_version, list_shards
from caption_assets.resources import Storage

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
    """Register the shards that the source holds, and report what they contain."""
    with clear_failures():
        source = storage.source()
        versions = {shard.key: content_version(source, shard) for shard in list_shards(source)}
    known = set(context.instance.get_dynamic_partitions(SHARDS.name))
    context.instance.add_dynamic_partitions(SHARDS.name, list(versions))
    for key, version in versions.items():
        context.log_event(dg.AssetObservation(SHARDS_SPEC.key, partition=key, tags={DATA_VERSION_TAG: version}))
    return dg.MaterializeResult(
        data_version=dg.DataVersion(sha256(repr(sorted(versions.items())).encode()).hexdigest()[:16]),
        metadata={
            "shards": len(versions),
            "new": sorted(set(versions) - known)[:100],
            "source": dg.MetadataValue.path(source.address("")),
        },
    )
