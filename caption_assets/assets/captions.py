"""Stage-1 and stage-2 captions of a shard: one step, one engine, one pass over each video."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256

import dagster as dg

from caption_assets.assets.failures import clear_failures
from caption_assets.assets.markdown import markdown_table
from caption_assets.assets.partitions import SHARDS
from caption_assets.assets.pods import gpu_pod
from caption_assets.assets.provenance import input_tags, output_tags
from caption_assets.captioning.engine import CaptionEngine
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.shard import ShardJob, caption_shard, failed_fraction
from caption_assets.errors import CaptionAssetsError
from caption_assets.resources import Engine, Storage, Weights
from caption_assets.settings import Settings
from caption_assets.store.tables import CaptionRow, Status, Table

PROGRESS_SECONDS = 10.0
SAMPLE_ROWS = 8


class TooManyFailed(CaptionAssetsError):
    """A shard of which more windows failed than the settings allow."""


def build_captions(settings: Settings) -> dg.AssetsDefinition:
    """Both caption assets, made as ``settings`` say. Selected together they share the engine and each video."""
    recipe, limit = settings.recipe, settings.max_failed_fraction

    @dg.multi_asset(
        name="captions",
        specs=_specs(recipe),
        can_subset=True,
        partitions_def=SHARDS,
        backfill_policy=dg.BackfillPolicy.multi_run(settings.shards_per_run),
        op_tags=gpu_pod(recipe.variant),
    )
    def captions(
        context: dg.AssetExecutionContext, storage: Storage, weights: Weights, engine: Engine
    ) -> Iterator[dg.MaterializeResult[None]]:
        with clear_failures():
            root, source = storage.root(), storage.source()
            model = weights.ensure_local(root, recipe.variant)
        tables = frozenset(Table(key.to_user_string()) for key in context.selected_asset_keys)
        failures: dict[str, str] = {}

        async def run() -> None:
            context.log.info(f"starting the engine for {recipe.variant.hub_id}")
            begun = time.monotonic()
            async with engine.start(model, recipe) as running:
                context.log.info(f"the engine is ready after {time.monotonic() - begun:.0f} s")
                for shard in context.partition_keys:
                    try:
                        await _caption(context, running, ShardJob(root, source, shard, recipe, tables), limit)
                    except CaptionAssetsError as error:
                        context.log.error(f"{shard}: {error}")
                        failures[shard] = str(error)

        with clear_failures():
            asyncio.run(run())
        yield from ()  # a generator, for Dagster: each materialization has been logged already
        if failures:
            raise dg.Failure(
                description=f"{len(failures)} of {len(context.partition_keys)} shards failed: "
                + "; ".join(f"{shard}: {reason}" for shard, reason in failures.items())
            )

    return captions


async def _caption(context: dg.AssetExecutionContext, engine: CaptionEngine, job: ShardJob, limit: float) -> None:
    """Caption one shard and record each of its tables, stage 1 first.

    Raises:
        CaptionAssetsError: if the shard cannot be captioned, or more than ``limit`` of a table's windows failed.
    """
    begun = time.monotonic()
    made = {dg.AssetKey(table.value) for table in job.tables}
    inputs = {
        upstream: input_tags(context, upstream, job.shard)
        for key in made
        for upstream in context.assets_def.asset_deps[key] - made
    }
    published = await caption_shard(engine, job, _progress(context, job.shard))
    seconds = time.monotonic() - begun
    for table, result in published.items():
        _check_failed(table, result.rows, limit)
        key = dg.AssetKey(table.value)
        versions = output_tags(context, key, _data_version(result.rows))
        for upstream in context.assets_def.asset_deps[key]:
            versions |= inputs.get(upstream) or input_tags(context, upstream, job.shard)
        facts = {**_metadata(result.rows, seconds), "path": dg.MetadataValue.path(job.root.address(result.path))}
        context.log_event(dg.AssetMaterialization(key, partition=job.shard, metadata=facts, tags=versions))


def _specs(recipe: Recipe) -> list[dg.AssetSpec]:
    """``skippable``: the step logs each shard's materialization itself, as it is published."""
    return [
        dg.AssetSpec(
            Table.STAGE1.value,
            deps=["clip_manifest", "model_weights"],
            description="A description of each window, from the video alone.",
            code_version=recipe.version(1),
            kinds={"vllm", "parquet"},
            skippable=True,
        ),
        dg.AssetSpec(
            Table.STAGE2.value,
            deps=["clip_manifest", "model_weights", Table.STAGE1.value],
            description="A fuller description of each window, from the video and its stage-1 caption.",
            code_version=recipe.version(2),
            kinds={"vllm", "parquet"},
            skippable=True,
        ),
    ]


def _progress(context: dg.AssetExecutionContext, shard: str) -> Callable[[int, int], None]:
    """Logs how far a shard is, at most every few seconds and at its end."""
    last = time.monotonic()

    def log(done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last >= PROGRESS_SECONDS:
            last = time.monotonic()
            context.log.info(f"{shard}: {done} of {total} windows done")

    return log


def _check_failed(table: Table, rows: Sequence[CaptionRow], limit: float) -> None:
    if (fraction := failed_fraction(rows)) > limit:
        first = next(row for row in rows if row.status is Status.FAILED and row.window_index is not None)
        raise TooManyFailed(
            f"{fraction:.0%} of the windows of {table} failed, more than CAPTION_MAX_FAILED_FRACTION = {limit:g}; "
            f"the first: {first.clip_key!r}, window {first.window_index}: {first.error}. The table was published "
            "for you to look at; mend the cause or raise the limit, and materialize the shard again"
        )


def _data_version(rows: Iterable[CaptionRow]) -> str:
    """Changes when a caption does; token counts and attempts are no part of it."""
    said = "\n".join(f"{row.window_id} {row.status} {row.error_kind} {row.caption!r}" for row in rows)
    return sha256(said.encode()).hexdigest()[:16]


def _metadata(rows: Sequence[CaptionRow], seconds: float) -> dict[str, dg.MetadataValue | int | float]:
    statuses = Counter(row.status for row in rows)
    return {
        "rows": len(rows),
        "rows_ok": statuses[Status.OK],
        "rows_failed": statuses[Status.FAILED],
        "truncated": sum(row.finish_reason == "length" for row in rows),
        "clips_per_second": round(len({row.clip_key for row in rows}) / seconds, 2),
        "prompt_tokens": sum(row.prompt_tokens or 0 for row in rows),
        "cached_tokens": sum(row.cached_tokens or 0 for row in rows),
        "output_tokens": sum(row.output_tokens or 0 for row in rows),
        "captions": markdown_table(["clip", "window", "caption"], _sample(rows)),
    }


def _sample(rows: Sequence[CaptionRow]) -> Iterator[list[str]]:
    """Some captions, failures first: they are what one wants to see."""
    for row in sorted(rows, key=lambda row: row.status is Status.OK)[:SAMPLE_ROWS]:
        window = "" if row.window_index is None else str(row.window_index)
        said = f"{row.error_kind}: {row.error}" if row.caption is None else row.caption
        yield [row.clip_key, window, said]
