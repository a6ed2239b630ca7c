"""What a run makes, and what of it the present step."""

from __future__ import annotations

import json

import dagster as dg

REQUEST_TAG = "caption_assets/request"
"""On a run that the schedule requested, as JSON: when, for which asset, the version of each shard's input. The run's
range of partitions may span other shards, which are whole."""


def is_selected(context: dg.AssetExecutionContext, key: dg.AssetKey) -> bool:
    """Whether the run makes this asset, in whichever step."""
    return key in context.job_def.asset_layer.selected_asset_keys


def shards_to_make(context: dg.AssetExecutionContext) -> list[str]:
    """The run's shards, without those that a scheduled run only passes over.

    What was last made of these is recorded again: Dagster would take them for failed, should the run fail.
    """
    request = context.run.tags.get(REQUEST_TAG)
    if request is None:
        return list(context.partition_keys)
    asked = json.loads(request)["shards"].keys()
    for shard in context.partition_keys:
        if shard not in asked:
            for key in context.selected_asset_keys:
                if (record := _last(context, key, shard)) and record.asset_materialization:
                    context.log_event(record.asset_materialization)
    return [shard for shard in context.partition_keys if shard in asked]


def _last(context: dg.AssetExecutionContext, key: dg.AssetKey, shard: str) -> dg.EventLogRecord | None:
    filters = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[shard])
    return next(iter(context.instance.fetch_materializations(filters, limit=1).records), None)
