"""Version tags of materializations, from which the UI computes staleness.

A step over several shards logs the materialization of each shard when it is published. Dagster adds these tags only to
what a step returns.
"""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg

from caption_assets.dagster_lib.private_dagster import (
    CODE_VERSION_TAG,
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
    INPUT_DATA_VERSION_TAG_PREFIX,
    INPUT_EVENT_POINTER_TAG_PREFIX,
    get_input_data_version_tag,
    get_input_event_pointer_tag,
)
from caption_assets.dagster_lib.project import Project
from caption_assets.store.versions import TableVersions


def output_tags(context: dg.AssetExecutionContext, key: dg.AssetKey, data_version: str) -> dict[str, str]:
    """The tags with the data version and code version of an asset."""
    tags = {DATA_VERSION_TAG: data_version, DATA_VERSION_IS_USER_PROVIDED_TAG: "true"}
    if code_version := context.assets_def.code_versions_by_key.get(key):
        tags[CODE_VERSION_TAG] = code_version
    return tags


def is_input_tag(name: str) -> bool:
    """Whether a tag holds the version of an input, or the event that reported it."""
    return name.startswith((INPUT_DATA_VERSION_TAG_PREFIX, INPUT_EVENT_POINTER_TAG_PREFIX))


def version_of(tags: Mapping[str, str]) -> str | None:
    """The data version in the tags of an input; None if the input was never materialized."""
    return next((value for name, value in tags.items() if name.startswith(INPUT_DATA_VERSION_TAG_PREFIX)), None)


def code_version_of(tags: Mapping[str, str]) -> str | None:
    """The code version in the tags of a materialization."""
    return tags.get(CODE_VERSION_TAG)


def versions_of(tags: Mapping[str, str]) -> TableVersions | None:
    """The versions in a materialization's tags; None if one is missing, as when it was reported in the UI."""
    data, code = tags.get(DATA_VERSION_TAG), tags.get(CODE_VERSION_TAG)
    if data is None or code is None:
        return None
    prefix = f"{INPUT_DATA_VERSION_TAG_PREFIX}/"
    keys = {name: dg.AssetKey.from_user_string(name.removeprefix(prefix)) for name in tags if name.startswith(prefix)}
    return TableVersions(data, code, {key.path[-1]: tags[name] for name, key in keys.items()})


def input_version_tags(project: Project, versions: TableVersions) -> dict[str, str]:
    """The tags with the versions of the inputs that a table was made from."""
    return {get_input_data_version_tag(project.key(name)): version for name, version in versions.inputs.items()}


def _lacks_version(record: dg.EventLogRecord) -> bool:
    """Whether an event is an observation without a version, such as the reason why a manifest failed."""
    observed = record.asset_observation
    return observed is not None and DATA_VERSION_TAG not in (observed.tags or {})


def input_tags(context: dg.AssetExecutionContext, upstream: dg.AssetKey, shard: str | None = None) -> dict[str, str]:
    """The tags with the current version of ``upstream``. Call this before reading it."""
    node = context.op_execution_context.job_def.asset_layer.get(upstream)
    partitions = [shard] if shard is not None and node.is_partitioned else None
    filters = dg.AssetRecordsFilter(asset_key=upstream, asset_partitions=partitions)
    # In a run that does not make an asset, it counts as external: its kind does not imply the kind of its events.
    fetches = (context.instance.fetch_materializations, context.instance.fetch_observations)
    records = [record for fetch in fetches for record in fetch(filters, limit=1).records if not _lacks_version(record)]
    if not records:
        return {}
    record = max(records, key=lambda record: record.storage_id)
    event = record.asset_materialization or record.asset_observation
    return {
        get_input_data_version_tag(upstream): ((event and event.tags) or {}).get(DATA_VERSION_TAG, ""),
        get_input_event_pointer_tag(upstream): str(record.storage_id),
    }
