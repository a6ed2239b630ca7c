"""The selection of a run: its assets, and the shards that a step makes."""

from __future__ import annotations

import dagster as dg

from caption_assets.dagster_lib.run_request import requested_shards


def is_selected(context: dg.AssetExecutionContext, key: dg.AssetKey) -> bool:
    """Whether the run makes an asset, in any step."""
    return key in context.job_def.asset_layer.selected_asset_keys


def shards_to_make(context: dg.AssetExecutionContext) -> list[str]:
    """The run's shards, without those in its range that a scheduled run was not requested for.

    The latest materializations of the others are logged again. Otherwise Dagster would show them as failed if the run
    fails.
    """
    shards = list(context.partition_keys)
    requested = requested_shards(context.run.tags, shards)
    if requested is None:
        return shards
    for shard in (shard for shard in shards if shard not in requested):
        for key in context.selected_asset_keys:
            if (record := _last(context, key, shard)) and record.asset_materialization:
                context.log_event(record.asset_materialization)
    return requested


def _last(context: dg.AssetExecutionContext, key: dg.AssetKey, shard: str) -> dg.EventLogRecord | None:
    filters = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[shard])
    return next(iter(context.instance.fetch_materializations(filters, limit=1).records), None)
