"""Version tags for a materialization that is logged by hand, so that the UI's staleness is as for a returned one.

A step over several shards logs each shard's materialization as it is published, and Dagster adds no versions to those.
"""

from __future__ import annotations

import dagster as dg
from dagster._core.definitions.data_version import (
    CODE_VERSION_TAG,
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
    get_input_data_version_tag,
    get_input_event_pointer_tag,
)


def version_tags(context: dg.AssetExecutionContext, key: dg.AssetKey, shard: str, data_version: str) -> dict[str, str]:
    """The tags for ``key``'s materialization of one shard, given the versions its inputs have now."""
    assets = context.assets_def
    tags = {DATA_VERSION_TAG: data_version, DATA_VERSION_IS_USER_PROVIDED_TAG: "true"}
    if code_version := assets.code_versions_by_key.get(key):
        tags[CODE_VERSION_TAG] = code_version
    for upstream in assets.asset_deps[key]:
        tags |= _input_tags(context, upstream, shard)
    return tags


def _input_tags(context: dg.AssetExecutionContext, upstream: dg.AssetKey, shard: str) -> dict[str, str]:
    partitioned = context.repository_def.asset_graph.get(upstream).is_partitioned
    filters = dg.AssetRecordsFilter(asset_key=upstream, asset_partitions=[shard] if partitioned else None)
    records = context.instance.fetch_materializations(filters, limit=1).records
    if not records:
        return {}
    versions = records[0].asset_materialization.tags or {} if records[0].asset_materialization else {}
    return {
        get_input_data_version_tag(upstream): versions.get(DATA_VERSION_TAG, ""),
        get_input_event_pointer_tag(upstream): str(records[0].storage_id),
    }
