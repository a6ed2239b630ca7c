"""The asset checks of caption tables and weights. The checks themselves are in ``caption_assets.checks``."""

import dagster as dg

from caption_assets.captioning.stages import StageGraph
from caption_assets.checks.asset_checks import CLIPS_READABLE, WEIGHTS_VERIFIED, Severity, checks_of, weights_verified
from caption_assets.checks.dataset_checks import EQUAL_TEXTS, OVER_LIMIT
from caption_assets.checks.stored_tables import StoredShard
from caption_assets.dagster_lib.check_events import SEVERITIES, check_with_history, log_findings
from caption_assets.dagster_lib.failures import ShardFailures, as_dagster_failure
from caption_assets.dagster_lib.project import Project, table_of
from caption_assets.dagster_lib.project_claim import check_claim
from caption_assets.dagster_lib.termination import stoppable
from caption_assets.export.config import ExportConfig
from caption_assets.models.mirror import find_damage, read_weights_manifest
from caption_assets.resources import Storage
from caption_assets.settings import Settings
from caption_assets.store.failure_limits import FailureLimits
from caption_assets.store.root import Root


def caption_checks(project: Project, graph: StageGraph) -> list[dg.AssetCheckSpec]:
    """The checks of each shard's caption tables."""
    return [
        dg.AssetCheckSpec(
            check.name,
            asset=project.key(stage.name),
            description=check.description,
            blocking=check.severity is Severity.ERROR,
            partitions_def=project.partitions,
        )
        for stage in graph.stages
        for check in checks_of(graph, stage)
    ]


def manifest_check(project: Project) -> dg.AssetCheckSpec:
    """The check of each shard's manifest, which is evaluated also if the manifest could not be made."""
    return dg.AssetCheckSpec(
        CLIPS_READABLE.name,
        asset=project.manifest,
        description=CLIPS_READABLE.description,
        blocking=True,
        partitions_def=project.partitions,
    )


def dataset_checks(project: Project, export: ExportConfig) -> list[dg.AssetCheckSpec]:
    """The checks of each shard of the training dataset."""
    checks = [EQUAL_TEXTS, *([OVER_LIMIT] if export.budget else [])]
    return [
        dg.AssetCheckSpec(
            check.name,
            asset=project.dataset,
            description=check.description,
            partitions_def=project.partitions,
        )
        for check in checks
    ]


def check_stored(
    context: dg.AssetExecutionContext, project: Project, graph: StageGraph, root: Root, limits: FailureLimits
) -> None:
    """Check stored captions, in a step with checks but no captions selected.

    Args:
        context: the step's context.
        project: the project of the shards.
        graph: the stages.
        root: the root that holds the tables.
        limits: limits on failed windows.

    Raises:
        Failure: if a shard has no captions, or they cannot be read. The other shards are checked first.
    """
    failures = ShardFailures(context)
    tables = sorted({table_of(key.asset_key) for key in context.selected_asset_check_keys})
    for shard in context.partition_keys:
        with failures.of(shard):
            stored = StoredShard(root, shard)
            found = {table: check_with_history(context, project, graph, stored, table, limits) for table in tables}
            for table, findings in found.items():
                log_findings(context, project, shard, table, findings)
    failures.check()


def build_weights_check(settings: Settings) -> dg.AssetChecksDefinition:
    """Build the check of the mirrored models and adapter. It reads all files, in a step of its own without a GPU."""
    checkpoints, check = settings.checkpoints, WEIGHTS_VERIFIED
    weights = Project.of(settings).weights

    @dg.asset_check(name=check.name, asset=weights, description=check.description, blocking=True)
    def verify(context: dg.AssetCheckExecutionContext, storage: Storage) -> dg.AssetCheckResult:
        with stoppable(context), as_dagster_failure():
            check_claim(context.instance, Project.of(settings), storage)
            root = storage.root()
            manifests = [read_weights_manifest(root, checkpoint) for checkpoint in checkpoints]
            damaged: dict[str, str] = {}
            for checkpoint, manifest in zip(checkpoints, manifests, strict=True):
                found = find_damage(root, checkpoint, manifest)
                damaged |= {f"{checkpoint.folder}/{path}": reason for path, reason in found.items()}
            finding = weights_verified(manifests, damaged)
        return dg.AssetCheckResult(
            passed=finding.passed,
            metadata=finding.metadata,
            severity=SEVERITIES[check.severity],
            description=finding.message,
        )

    return verify
