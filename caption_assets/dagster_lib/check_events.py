"""Asset checks of stored tables: running them, and converting their findings to Dagster's events and results."""

from collections.abc import Iterator, Sequence

import dagster as dg

from caption_assets.captioning.open_shard import RECIPE_VERSION
from caption_assets.captioning.stages import StageGraph
from caption_assets.checks.asset_checks import EARLIER_SHARDS, Finding, Severity, check_table
from caption_assets.checks.stored_tables import StoredShard, StoredTable
from caption_assets.dagster_lib.metadata import MEAN_WORDS
from caption_assets.dagster_lib.private_dagster import AssetCheckEvaluationTargetMaterializationData
from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.provenance import code_version_of
from caption_assets.store.failure_limits import FailureLimits

PLOTTED = frozenset({"fraction", MEAN_WORDS, "earlier_shards", "limit"})
"""Metadata that is kept for passed checks too, because the UI plots it over time."""
SEVERITIES = {Severity.ERROR: dg.AssetCheckSeverity.ERROR, Severity.WARN: dg.AssetCheckSeverity.WARN}


def check_with_history(
    context: dg.AssetExecutionContext,
    project: Project,
    graph: StageGraph,
    shard: StoredShard,
    table: str,
    limits: FailureLimits,
) -> list[Finding]:
    """Run all checks of a shard's table, with earlier shards of the event log to compare with.

    ``graph`` has the stages, and ``limits`` those on failed windows.
    """
    earlier = _earlier_means(context.instance, project.key(table), shard.table(table), shard.shard)
    return check_table(shard, graph, table, limits=limits, earlier_means=earlier)


def log_findings(
    context: dg.AssetExecutionContext, project: Project, shard: str, table: str, found: Sequence[Finding]
) -> None:
    """Log an evaluation for each finding whose check is selected."""
    key = project.key(table)
    target = _target(context.instance, key, shard)
    for finding in found:
        if dg.AssetCheckKey(key, finding.check.name) in context.selected_asset_check_keys:
            evaluation = dg.AssetCheckEvaluation(
                asset_key=key,
                check_name=finding.check.name,
                passed=finding.passed,
                metadata=_metadata(finding),
                target_materialization_data=target,
                severity=SEVERITIES[finding.check.severity],
                description=finding.message,
                blocking=finding.check.severity is Severity.ERROR,
                partition=shard,
            )
            context.log_event(evaluation)


def logged_checks(context: dg.AssetExecutionContext) -> Iterator[dg.Output[None]]:
    """The outputs of the step's checks, for its end. Their evaluations were logged.

    Without them Dagster logs that the step did not yield its outputs, with the names of all.
    """
    for key in sorted(context.selected_asset_check_keys):
        yield dg.Output(None, output_name=context.assets_def.get_output_name_for_asset_check_key(key))


def check_results(
    context: dg.AssetExecutionContext, key: dg.AssetKey, found: Sequence[Finding]
) -> list[dg.AssetCheckResult]:
    """The results that a step over one shard yields: one for each finding whose check is selected."""
    return [
        dg.AssetCheckResult(
            passed=finding.passed,
            asset_key=key,
            check_name=finding.check.name,
            metadata=_metadata(finding),
            severity=SEVERITIES[finding.check.severity],
            description=finding.message,
        )
        for finding in found
        if dg.AssetCheckKey(key, finding.check.name) in context.selected_asset_check_keys
    ]


def _metadata(finding: Finding) -> dict[str, int | float | str]:
    """All metadata of a check that did not pass. For a check that passed, only the plotted entries.

    A shard has four to nine evaluations for each stage, each an event in the log, and their messages contain the other
    numbers.
    """
    return {name: value for name, value in finding.metadata.items() if not finding.passed or name in PLOTTED}


def _earlier_means(instance: dg.DagsterInstance, key: dg.AssetKey, stored: StoredTable, shard: str) -> list[float]:
    """Mean number of words in the other shards that were captioned last with the table's recipe version."""
    recipe = stored.file_metadata.get(RECIPE_VERSION, "")
    filters = dg.AssetRecordsFilter(key)
    means: dict[str, float] = {}
    for record in instance.fetch_materializations(filters, limit=EARLIER_SHARDS).records:
        materialization = record.asset_materialization
        if materialization is None or record.partition_key in (None, shard, *means):
            continue
        mean = materialization.metadata.get(MEAN_WORDS)
        if code_version_of(materialization.tags or {}) == recipe and isinstance(mean, dg.FloatMetadataValue):
            means[str(record.partition_key)] = mean.value or 0.0
    return list(means.values())


def _target(
    instance: dg.DagsterInstance, key: dg.AssetKey, shard: str
) -> AssetCheckEvaluationTargetMaterializationData | None:
    """The latest materialization of a shard, to which the evaluation of a check refers."""
    filters = dg.AssetRecordsFilter(key, asset_partitions=[shard])
    for record in instance.fetch_materializations(filters, limit=1).records:
        return AssetCheckEvaluationTargetMaterializationData(
            storage_id=record.storage_id, run_id=record.run_id, timestamp=record.timestamp
        )
    return None
