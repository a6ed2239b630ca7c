"""The caption assets of a recipe's stages: one engine for each model, and one pass over each video.

All are made in one step of a run, the models one after the other. A second step would be skipped in a run over several
shards: Dagster skips what depends on a step that logs materializations and yields no output.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import dagster as dg

from caption_assets.assets.check_definitions import caption_checks, check_stored
from caption_assets.captioning.adapter import Adapter
from caption_assets.captioning.caption_run import CaptionRun
from caption_assets.captioning.open_shard import file_metadata
from caption_assets.captioning.output import ChoiceOutput, JsonOutput, TextOutput
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.shard_queue import caption_shards
from caption_assets.captioning.stages import Stage
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.captioning.threads import in_thread
from caption_assets.dagster_lib.caption_metadata import MEANINGS
from caption_assets.dagster_lib.check_events import logged_checks
from caption_assets.dagster_lib.failures import as_dagster_failure
from caption_assets.dagster_lib.metadata import column_metadata, meanings, shortened
from caption_assets.dagster_lib.metrics import Metrics, serve_metrics
from caption_assets.dagster_lib.progress import DownloadProgress
from caption_assets.dagster_lib.project import CAPTIONS_GROUP, Project
from caption_assets.dagster_lib.project_claim import check_claim
from caption_assets.dagster_lib.provenance import input_tags, version_of
from caption_assets.dagster_lib.recipe_metadata import recipe_metadata
from caption_assets.dagster_lib.retry_policy import step_retry_policy
from caption_assets.dagster_lib.run_log import RunLog
from caption_assets.dagster_lib.run_request import shards_to_process
from caption_assets.dagster_lib.termination import stoppable
from caption_assets.kubernetes.pods import CAPTION_STEP, GPU_POOL, caption_pod, check_image
from caption_assets.models.mirror import content_digest
from caption_assets.models.weights import WeightsError
from caption_assets.resources import Engine, Storage, Weights, Workers
from caption_assets.settings import Settings
from caption_assets.store.root import Root


def build_captions(settings: Settings) -> dg.AssetsDefinition:
    """Build the caption assets. Selected together, those of one model share the engine and each decoded video."""
    project, recipe = Project.of(settings), settings.caption_recipe

    @dg.multi_asset(
        name=CAPTION_STEP,
        specs=[_spec(project, recipe, stage) for stage in recipe.stages],
        check_specs=caption_checks(project, recipe.graph),
        can_subset=True,
        partitions_def=project.partitions,
        backfill_policy=dg.BackfillPolicy.multi_run(settings.shards_per_run),
        op_tags=caption_pod(settings),
        pool=GPU_POOL,
        retry_policy=step_retry_policy(settings),
    )
    def captions(
        context: dg.AssetExecutionContext, storage: Storage, weights: Weights, workers: Workers, engine: Engine
    ) -> Iterator[dg.MaterializeResult[None] | dg.Output[None]]:
        # Dagster would skip the dataset: a step that logs several shards' materializations yields no output.
        if len(context.partition_keys) > 1 and project.dataset in context.job_def.asset_layer.selected_asset_keys:
            raise dg.Failure(
                "a run over several shards cannot make captions and their dataset: deselect captioned_dataset, and "
                "materialize it afterwards",
                allow_retries=False,
            )
        if not context.selected_asset_keys:
            with stoppable(context), as_dagster_failure():
                root = storage.root()
                check_claim(context.instance, project, storage)
                check_stored(context, project, recipe.graph, root, settings.failure_limits)
            yield from logged_checks(context)
            return
        with stoppable(context), as_dagster_failure():
            root = storage.root()
            check_claim(context.instance, project, storage)
            check_image()
            shards, log = shards_to_process(context), RunLog(context, settings, root)
            whole = CaptionRun(
                root=root,
                source=storage.source(),
                recipe=recipe,
                weights_version=version_of(input_tags(context, project.weights)),
                previews=settings.previews,
                owner=f"run {context.run.root_run_id or context.run.run_id}",
                checkpoint_rows=settings.checkpoint_rows,
                checkpoint_seconds=settings.checkpoint_seconds,
                lease_seconds=settings.lease_seconds,
                max_attempts=settings.max_window_attempts,
                limits=settings.failure_limits,
            )
        for model in recipe.steps:
            stages = tuple(
                stage for stage in model.own_stages if project.key(stage.name) in context.selected_asset_keys
            )
            if not stages or not (ready := log.ready(shards, stages)):
                continue
            with stoppable(context) as stop, as_dagster_failure():
                identity = engine.engine_config.of(model.variant).identity
                run = replace(whole, recipe=_identified(model, root), stages=stages, engine_settings=identity)
                with workers.start() as sandbox, serve_metrics(settings.metrics_port) as metrics:
                    supervisor = _engine(context, engine, weights, run, log, metrics)
                    stop.run(caption_shards(supervisor, sandbox, run, ready, [metrics, log]))
            yield from log.take_results()
        log.check()
        if not context.has_partition_key:
            yield from logged_checks(context)

    return captions


def _identified(recipe: Recipe, root: Root) -> Recipe:
    """The recipe with content hashes of model and adapter, where id and revision do not identify the content."""
    lora_weights = content_digest(root, recipe.lora) if recipe.lora else None
    return replace(recipe, weights=content_digest(root, recipe.variant), lora_weights=lora_weights)


@asynccontextmanager
async def _engine(
    context: dg.AssetExecutionContext, engine: Engine, weights: Weights, run: CaptionRun, log: RunLog, metrics: Metrics
) -> AsyncIterator[EngineSupervisor]:
    """The run's engine. The model is downloaded to this machine first."""
    log.engine_requested()
    progress = DownloadProgress(context.log)
    try:
        model = await in_thread(weights.ensure_local, run.root, run.recipe.variant, progress)
        adapter = None
        if (lora := run.recipe.lora) is not None:
            folder = await in_thread(weights.ensure_local, run.root, lora, progress)
            adapter = await in_thread(Adapter.read, lora, folder, run.recipe.variant, model)
            for warning in adapter.warnings:
                context.log.warning(warning)
    except asyncio.CancelledError:
        progress.stop()
        raise
    if run.recipe != _identified(run.recipe, run.root):
        raise WeightsError(
            f"the weights of {run.recipe.variant.hub_id} in {run.root.url} changed while the run started: materialize "
            "the captions again"
        )
    with_adapter = f" with the LoRA adapter {lora.hub_id}" if lora else ""
    context.log.info(f"starting the engine for {run.recipe.variant.hub_id}{with_adapter}")

    def on_crash(reason: str) -> None:
        context.log.warning(f"{reason}; starting another engine for the windows in progress")

    async with engine.start(model, run.recipe, on_crash, metrics.watch, adapter) as supervisor:
        log.engine_ready()
        yield supervisor
        if supervisor.crashes:
            context.log.info(f"engine restarts: {supervisor.crashes}")
        if supervisor.resent:
            context.log.info(f"videos resent, because the engine's cache had evicted them: {supervisor.resent}")


def _spec(project: Project, recipe: Recipe, stage: Stage) -> dg.AssetSpec:
    """The spec of a stage's asset. It is skippable: a step over several shards logs materializations, and yields none.

    A stage that needs others reads the manifest and the weights too, but depends on them through these stages alone.
    Otherwise a backfill with a missing manifest would make the stages in several runs, with an engine each.
    """
    return dg.AssetSpec(
        project.key(stage.name),
        deps=[project.key(name) for name in project.inputs[stage.name]],
        description=_description(stage),
        metadata={
            **column_metadata(stage.name, stage.columns),
            **meanings(MEANINGS),
            **recipe_metadata(file_metadata(recipe, stage)),
        },
        code_version=recipe.version(stage),
        group_name=CAPTIONS_GROUP,
        kinds={"vllm", "parquet"},
        skippable=True,
    )


def _description(stage: Stage) -> str:
    """The form of a stage's answer, what it is made from, and the first words of the prompt."""
    match stage.output:
        case TextOutput():
            form = "A text"
        case JsonOutput():
            form = "JSON"
        case ChoiceOutput(choices):
            form = f"One of {', '.join(choices)}"
    sources = ["the video"] if stage.video else []
    sources += stage.needs
    return f"{form} for each window, from {' and '.join(sources)}: {shortened(' '.join(stage.prompt.split()))}"
