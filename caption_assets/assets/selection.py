"""What else the present run makes."""

from __future__ import annotations

import dagster as dg


def is_selected(context: dg.AssetExecutionContext, key: dg.AssetKey) -> bool:
    """Whether the run makes this asset, in whichever step."""
    return key in context.job_def.asset_layer.selected_asset_keys


def was_made(context: dg.AssetExecutionContext, key: dg.AssetKey, shard: str) -> bool:
    """Whether the run has made this asset for the shard."""
    filters = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[shard])
    records = context.instance.fetch_materializations(filters, limit=1).records
    return bool(records) and records[0].run_id == context.run.run_id
