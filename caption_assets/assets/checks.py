"""The asset checks: what the findings on stored tables are to Dagster."""

import dagster as dg

from caption_assets.checks.findings import (
    CHECKS,
    WEIGHTS_VERIFIED,
    Severity,
    weights_verified,
)
from caption_assets.checks.stored import read_stored
from caption_assets.dagster_lib.check_events import SEVERITIES, findings, log_findings
from caption_assets.dagster_lib.failures import ShardFailures, as_dagster_failure
from caption_assets.dagster_lib.project import Project, table_of
from caption_assets.dagster_lib.termination import stoppable
from caption_assets.models.mirror import find_damage, read_manifest
from caption_assets.resources import Storage
from caption_assets.settings import Settings
from caption_assets.store.root import Root


def caption_checks(project: Project) -> list[dg.AssetCheckSpec]:
    """What is checked of each shard's caption tables."""
    return [
        dg.AssetCheckSpec(
            check.name,
            asset=project.key(table),
            description=check.description,
            blocking=check.severity is Severity.ERROR,
            partitions_def=project.partitions,
        )
        for table, checks in CHECKS.items()
        for check in checks
    ]


def check_stored(context: dg.AssetExecutionContext, project: Project, root: Root, limit: float) -> None:
    """Look at captions that are there already: checks were selected, and no captions.

    Args:
        context: the step's, over some shards.
        project: whose shards they are.
        root: which holds the tables.
        limit: largest share of failed windows.

    Raises:
        Failure: if a shard has not been captioned, or cannot be looked at; the others are.
    """
    failures = ShardFailures(context)
    tables = sorted({table_of(key.asset_key) for key in context.selected_asset_check_keys})
    for shard in context.partition_keys:
        with failures.of(shard):
            stored = read_stored(root, shard, tables[-1])
            for table in tables:
                log_findings(context, project, shard, table, findings(context, project, shard, stored[table], limit))
    failures.check()


def build_weights_check(settings: Settings) -> dg.AssetChecksDefinition:
    """The check that reads the whole mirror of the model and the adapter: a step of its own, without a GPU."""
    checkpoints, check = settings.checkpoints, WEIGHTS_VERIFIED
    weights = Project(settings.project).weights

    @dg.asset_check(name=check.name, asset=weights, description=check.description, blocking=True)
    def verify(context: dg.AssetCheckExecutionContext, storage: Storage) -> dg.AssetCheckResult:
        with stoppable(context), as_dagster_failure():
            root = storage.root()
            manifests = [read_manifest(root, checkpoint) for checkpoint in checkpoints]
            damaged: dict[str, str] = {}
            for checkpoint, manifest in zip(checkpoints, manifests, strict=True):
                damaged |= find_damage(root, checkpoint, manifest)
            finding = weights_verified(manifests, damaged)
        return dg.AssetCheckResult(
            passed=finding.passed,
            metadata=finding.facts,
            severity=SEVERITIES[check.severity],
            description=finding.message,
        )

    return verify
