"""Events of asset checks: findings in stored tables, as evaluations and results for Dagster."""

from collections.abc import Sequence

import dagster as dg

from caption_assets.checks.findings import EARLIER_SHARDS, Finding, Looked, Severity, find
from caption_assets.dagster_lib.private import AssetCheckEvaluationTargetMaterializationData as Target
from caption_assets.dagster_lib.project import Project
from caption_assets.dagster_lib.provenance import code_version_of

MEAN_WORDS = "mean_words"
"""Metadata of a caption table's materialization that later shards are compared with."""
WATCHED = frozenset({"fraction", MEAN_WORDS, "earlier_shards", "limit"})
"""Facts of a check that the UI draws over time."""
SEVERITIES = {Severity.ERROR: dg.AssetCheckSeverity.ERROR, Severity.WARN: dg.AssetCheckSeverity.WARN}


def findings(
    context: dg.AssetExecutionContext, project: Project, shard: str, looked: Looked, limit: float
) -> list[Finding]:
    """All that is found of a shard's table; ``limit`` is the largest share of failed windows."""
    earlier = _earlier_means(context.instance, project.key(looked.table), looked, shard)
    return find(looked, max_failed_fraction=limit, earlier_means=earlier)


def log_findings(
    context: dg.AssetExecutionContext, project: Project, shard: str, table: str, found: Sequence[Finding]
) -> None:
    """Tell Dagster of the findings of a shard's table, as far as their checks were selected."""
    key = project.key(table)
    target = _target(context.instance, key, shard)
    for finding in found:
        if dg.AssetCheckKey(key, finding.check.name) in context.selected_asset_check_keys:
            evaluation = dg.AssetCheckEvaluation(
                asset_key=key,
                check_name=finding.check.name,
                passed=finding.passed,
                metadata=_shown(finding),
                target_materialization_data=target,
                severity=SEVERITIES[finding.check.severity],
                description=finding.message,
                blocking=finding.check.severity is Severity.ERROR,
                partition=shard,
            )
            context.log_event(evaluation)


def check_results(
    context: dg.AssetExecutionContext, key: dg.AssetKey, found: Sequence[Finding]
) -> list[dg.AssetCheckResult]:
    """The findings of a table as a step over one shard yields them, as far as their checks were selected."""
    return [
        dg.AssetCheckResult(
            passed=finding.passed,
            asset_key=key,
            check_name=finding.check.name,
            metadata=_shown(finding),
            severity=SEVERITIES[finding.check.severity],
            description=finding.message,
        )
        for finding in found
        if dg.AssetCheckKey(key, finding.check.name) in context.selected_asset_check_keys
    ]


def _shown(finding: Finding) -> dict[str, int | float | str]:
    """All facts of a check that did not pass; of one that did, those that are watched over time.

    There are 16 evaluations a shard, and its message gives the other numbers.
    """
    return {name: value for name, value in finding.facts.items() if not finding.passed or name in WATCHED}


def _earlier_means(instance: dg.DagsterInstance, key: dg.AssetKey, looked: Looked, shard: str) -> list[float]:
    """Mean words of the shards that were last captioned by the table's recipe, others than ``shard``."""
    recipe = (looked.schema.metadata or {}).get(b"recipe_version", b"").decode()
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


def _target(instance: dg.DagsterInstance, key: dg.AssetKey, shard: str) -> Target | None:
    """The materialization that a check is of: the last one."""
    filters = dg.AssetRecordsFilter(key, asset_partitions=[shard])
    for record in instance.fetch_materializations(filters, limit=1).records:
        return Target(storage_id=record.storage_id, run_id=record.run_id, timestamp=record.timestamp)
    return None
