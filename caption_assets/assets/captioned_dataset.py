"""The asset of the training dataset: selected windows in the format of a trainer, if the settings enable it."""

from collections.abc import Iterator, Sequence
from functools import partial

import dagster as dg

from caption_assets.assets.check_definitions import dataset_checks
from caption_assets.checks.asset_checks import Finding
from caption_assets.checks.dataset_checks import few_equal, few_over_limit
from caption_assets.checks.stored_tables import StoredShard
from caption_assets.dagster_lib.check_events import check_results
from caption_assets.dagster_lib.failures import as_dagster_failure
from caption_assets.dagster_lib.metadata import meanings
from caption_assets.dagster_lib.project import CAPTIONS_GROUP, Project
from caption_assets.dagster_lib.project_claim import check_claim
from caption_assets.dagster_lib.retry_policy import step_retry_policy
from caption_assets.dagster_lib.termination import stoppable
from caption_assets.errors import as_project_error
from caption_assets.export.card import CARD
from caption_assets.export.config import ExportConfig
from caption_assets.export.dataset_shard import ExportResult, export_shard
from caption_assets.export.duplicates import FrequentText
from caption_assets.export.formats import layout_of
from caption_assets.export.index import shard_folder
from caption_assets.kubernetes.pods import CUT_WORKERS, cpu_pod, export_size
from caption_assets.report.gallery import write_gallery
from caption_assets.resources import Storage, Workers
from caption_assets.settings import Settings

MEANINGS = {
    "samples": "Number of samples: in webdataset one for each clip, in JSON lines one for each window",
    "clips": "Number of clips with at least one exported window",
    "windows": "Number of exported windows",
    "left_out": "Number of windows and unreadable clips that were not exported",
    "left_out_by_reason": "Number of these by reason: the table in which they failed with the kind of error, a flag, "
    "the condition, or a rejection",
    "corrections": "Number of people's corrections of captions: accepted, rejected, rewritten; outdated (the model's "
    "text has changed since), and unmatched (the window has changed)",
    "tokens": "Lengths of the texts in tokens of the trainer's tokenizer: number of texts, of those over the limit and "
    "of those dropped, total and maximum",
    "files": "Number of files of the shard",
    "size_mb": "Total size of the files, in megabytes",
    "written": "Whether files were written; false if the stored files are current",
    "path": "Folder of the shard's files",
    "card": "Path of the dataset card",
}
"""Meaning of each metadata entry."""


def build_captioned_dataset(settings: Settings, export: ExportConfig) -> dg.AssetsDefinition:
    """Build the asset that writes the dataset."""
    project = Project.of(settings)

    @dg.asset(
        key=project.dataset,
        partitions_def=project.partitions,
        deps=[project.key(table) for table in project.tables],
        description=f"Clips and captions for training, as {layout_of(export).name}, with a dataset card.",
        group_name=CAPTIONS_GROUP,
        kinds={"huggingface"},
        metadata=meanings(MEANINGS),
        code_version=export.code_version,
        automation_condition=dg.AutomationCondition.eager(),
        check_specs=dataset_checks(project, export),
        op_tags=cpu_pod(export_size(settings)),
        retry_policy=step_retry_policy(settings),
    )
    def captioned_dataset(
        context: dg.AssetExecutionContext, storage: Storage, workers: Workers
    ) -> Iterator[dg.MaterializeResult[None]]:
        shard = context.partition_key
        with stoppable(context), as_dagster_failure():
            root = storage.root()
            check_claim(context.instance, project, storage)
            start = partial(workers.start, CUT_WORKERS if settings.executor == "k8s" else None)
            exported = export_shard(root, storage.source(), shard, export, start)
            if exported.is_corrected:
                _refresh_gallery(context, StoredShard(root, shard), [stage.name for stage in export.graph.stages])
        index = exported.index
        if not index.windows:
            reasons = ", ".join(f"{reason}: {number}" for reason, number in index.left_out.items())
            context.log.warning(f"{shard}: all windows are left out of the dataset ({reasons})")
        yield dg.MaterializeResult(
            data_version=dg.DataVersion(index.version),
            metadata={
                "samples": index.samples,
                "clips": index.clips,
                "windows": index.windows,
                "left_out": sum(index.left_out.values()),
                "left_out_by_reason": dg.MetadataValue.json(dict(index.left_out)),
                "corrections": dg.MetadataValue.json(dict(index.corrections)),
                **({"tokens": dg.MetadataValue.json(dict(index.tokens))} if index.tokens else {}),
                "files": len(index.files),
                "size_mb": round(index.bytes / 1e6, 1),
                "written": exported.written,
                "path": dg.MetadataValue.path(root.address(shard_folder(shard))),
                "card": dg.MetadataValue.path(root.address(CARD)),
            },
            check_results=check_results(context, project.dataset, findings_of(exported, export)),
        )

    return captioned_dataset


def _refresh_gallery(context: dg.AssetExecutionContext, stored: StoredShard, stages: Sequence[str]) -> None:
    """Write the gallery with new corrections. The export is recorded even if the gallery cannot be written."""
    try:
        write_gallery(stored, stages)
    except Exception as error:
        context.log.warning(f"{stored.shard}: cannot write the gallery: {as_project_error(error)}")


def findings_of(exported: ExportResult, export: ExportConfig) -> list[Finding]:
    """The findings of the checks of an exported shard."""
    found = exported.most_frequent or FrequentText("", 0, 0, 0)
    equal = few_equal(
        found.text, windows=found.windows, shards=found.shards, total=found.total, kept=export.max_duplicates
    )
    return [equal, *([few_over_limit(exported.index.tokens)] if exported.index.tokens else [])]
