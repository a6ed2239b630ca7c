"""The shards of a run: all in its range, or those that were requested, with one tag for each.

The partition range of a requested run may include other shards. One tag with all requested shards would be too long:
PostgreSQL cannot index a tag of more than 2,704 bytes (a third of a page), and the run could not be created.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from hashlib import sha256

import dagster as dg

from caption_assets.dagster_lib.private_dagster import HIDDEN_TAG_PREFIX, plan_materialization

NAMESPACE = "caption_assets.request/"
"""Namespace of the tags."""
MAX_LENGTH = 63
"""Maximum length of a tag's name after the namespace; Dagster warns beyond it."""
TAGS_PER_QUERY = 500
"""Maximum number of tags in a query."""


def request_tags(asset: dg.AssetKey, inputs: Mapping[str, str], tick: str) -> dict[str, str]:
    """The tags of a run of the schedule or of a command.

    Args:
        asset: the asset that the run materializes; the last one if there are several.
        inputs: the requested shards, with the version of each one's input.
        tick: time of the request. A retry of the run has the same time, so that both count as one request.
    """
    return {_tag(shard): f"{_request(asset, version)} {tick}" for shard, version in inputs.items()}


def shards_to_process(context: dg.AssetExecutionContext) -> list[str]:
    """The shards that a step processes: those in the run's range, without those that were not requested.

    The last events of the shards left out are logged again. Otherwise Dagster would show these shards with the status
    of this run: as failed if it fails, and as not failed if they failed before and it succeeds.
    """
    shards = list(context.partition_keys)
    requested = requested_shards(context.run.tags, shards)
    if requested is None:
        return shards
    for shard in (shard for shard in shards if shard not in requested):
        for key in context.selected_asset_keys:
            _log_again(context, key, shard)
    return requested


def _log_again(context: dg.AssetExecutionContext, key: dg.AssetKey, shard: str) -> None:
    """Log the last event of a shard before this run again: its materialization, or the plan of a failed run."""
    instance = context.instance
    filters = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[shard])
    made = next(iter(instance.fetch_materializations(filters, limit=1).records), None)
    # The instance's own methods are deprecated, or warn that they do not find plans of a kind that no storage here has.
    planned = instance.event_log_storage.get_event_records(
        dg.EventRecordsFilter(dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED, key, [shard]), limit=2
    )
    plan = next((record for record in planned if record.run_id != context.run.run_id), None)
    if made and made.asset_materialization and (plan is None or plan.storage_id < made.storage_id):
        context.log_event(made.asset_materialization)
    else:  # without an earlier plan, one of no run: Dagster counts it neither as in progress nor as failed
        plan_materialization(instance, plan.run_id if plan else "", key, shard)


def requested_shards(tags: Mapping[str, str], shards: Iterable[str]) -> list[str] | None:
    """Those of ``shards`` that the run's tags name; None if it names none."""
    names = {name.removeprefix(HIDDEN_TAG_PREFIX) for name in tags}
    if not any(name.startswith(NAMESPACE) for name in names):
        return None
    return [shard for shard in shards if _tag(shard) in names]


def count_requests(instance: dg.DagsterInstance, asset: dg.AssetKey, inputs: Mapping[str, str]) -> Counter[str]:
    """Number of requested runs by shard, for the shards' current inputs. Retries do not count."""
    found: Counter[str] = Counter()
    names = list(inputs)
    for begin in range(0, len(names), TAGS_PER_QUERY):
        shards = {_tag(shard): shard for shard in names[begin : begin + TAGS_PER_QUERY]}
        for name, values in instance.get_run_tags(tag_keys=list(shards)):
            shard = shards[name]
            request = _request(asset, inputs[shard])
            found[shard] = sum(value.rpartition(" ")[0] == request for value in values)
    return found


def _tag(shard: str) -> str:
    return NAMESPACE + _short(shard)


def _request(asset: dg.AssetKey, version: str) -> str:
    return f"{asset.to_user_string()} {_short(version)}"


def _short(text: str) -> str:
    return text if len(text) <= MAX_LENGTH else sha256(text.encode()).hexdigest()[:32]
