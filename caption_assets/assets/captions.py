"""Stage-1 and stage-2 captions of a shard: one step, one engine, one pass over each video."""

import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256

import dagster as dg

from caption_assets.assets.failures import clear_failures
from caption_assets.assets.markdown import markdown_table
from caption_assets.assets.partitions import SHARDS
from caption_assets.assets.pods import gpu_pod
from caption_assets.assets.progress import WeightsProgress
from caption_assets.assets.provenance import input_tags, output_tags
from caption_assets.assets.termination import run_until_sigterm
from caption_assets.captioning.job import Job
from caption_assets.captioning.open_shard import Published, failed_fraction
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.recovery import EngineKeeper
from caption_assets.captioning.shard import caption_shards
from caption_assets.captioning.threads import to_its_end
from caption_assets.errors import CaptionAssetsError
from caption_assets.resources import Clips, Engine, Storage, Weights
from caption_assets.settings import Settings
from caption_assets.store.root import Root
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
        op_tags=gpu_pod(settings),
    )
    def captions(
        context: dg.AssetExecutionContext, storage: Storage, weights: Weights, clips: Clips, engine: Engine
    ) -> Iterator[dg.MaterializeResult[None]]:
        tables = frozenset(Table(key.to_user_string()) for key in context.selected_asset_keys)
        with clear_failures():
            job = Job(
                root=storage.root(),
                source=storage.source(),
                recipe=recipe,
                tables=tables,
                previews=settings.previews,
                owner=f"run {context.run.root_run_id or context.run.run_id}",
                checkpoint_rows=settings.checkpoint_rows,
                checkpoint_seconds=settings.checkpoint_seconds,
                lease_seconds=settings.lease_seconds,
                max_attempts=settings.max_attempts,
            )
            log = _RunLog(context, job.root, limit)
            with clips.start() as sandbox:
                keeper = _engine(context, engine, weights, job)
                run_until_sigterm(caption_shards(keeper, sandbox, job, context.partition_keys, log))
        yield from ()  # a generator, for Dagster: each materialization has been logged already
        log.check()

    return captions


class _RunLog:
    """What happens to a run's shards, told to Dagster: progress, materializations, failures."""

    def __init__(self, context: dg.AssetExecutionContext, root: Root, limit: float) -> None:
        self.failures: dict[str, str] = {}
        """Why a shard failed, by shard."""
        self.skipped_shards: dict[str, str] = {}
        """Why a shard was left alone, by shard."""
        self._context = context
        self._root = root
        self._limit = limit
        self._begun: dict[str, float] = {}
        self._inputs: dict[str, dict[dg.AssetKey, dict[str, str]]] = {}
        self._last_word = time.monotonic()

    def begun(self, shard: str, windows: int) -> None:
        """Remember which versions of its inputs the shard is made from."""
        self._begun[shard] = time.monotonic()
        made = set(self._context.selected_asset_keys)
        self._inputs[shard] = {
            upstream: input_tags(self._context, upstream, shard)
            for key in made
            for upstream in self._context.assets_def.asset_deps[key] - made
        }

    def captioned(self, shard: str, done: int, windows: int) -> None:
        """Log how far the shard is, at most every few seconds and at its end."""
        if done == windows or time.monotonic() - self._last_word >= PROGRESS_SECONDS:
            self._last_word = time.monotonic()
            self._context.log.info(f"{shard}: {done} of {windows} windows done")

    def published(self, shard: str, tables: Mapping[Table, Published]) -> None:
        """Record each table, stage 1 first, up to one in which too many windows failed."""
        seconds = time.monotonic() - self._begun.pop(shard)
        inputs = self._inputs.pop(shard)
        try:
            for table, result in tables.items():
                _check_failed(table, result.rows, self._limit)
                self._record(shard, table, result, inputs, seconds)
        except CaptionAssetsError as error:
            self.failed(shard, error)

    def failed(self, shard: str, error: CaptionAssetsError) -> None:
        """Keep the reason; the run fails at its end."""
        self._context.log.error(f"{shard}: {error}")
        self.failures[shard] = str(error)

    def skipped(self, shard: str, reason: str) -> None:
        """Say so; the run fails for it only if it did nothing else."""
        self._context.log.warning(f"skipped: {reason}")
        self.skipped_shards[shard] = reason

    def warned(self, message: str) -> None:
        """Pass it on."""
        self._context.log.warning(message)

    def check(self) -> None:
        """End the step.

        Raises:
            Failure: if a shard failed, or none was done because others are at work on them.
        """
        shards = len(self._context.partition_keys)
        if self.failures:
            raise dg.Failure(description=f"{len(self.failures)} of {shards} shards failed: {_told(self.failures)}")
        if self.skipped_shards and len(self.skipped_shards) == shards:
            raise dg.Failure(description=f"nothing was done: {_told(self.skipped_shards)}")

    def _record(
        self, shard: str, table: Table, result: Published, inputs: Mapping[dg.AssetKey, dict[str, str]], seconds: float
    ) -> None:
        key = dg.AssetKey(table.value)
        versions = output_tags(self._context, key, _data_version(result.rows))
        for upstream in self._context.assets_def.asset_deps[key]:
            versions |= inputs.get(upstream) or input_tags(self._context, upstream, shard)
        facts = {**_metadata(result, seconds), "path": dg.MetadataValue.path(self._root.address(result.path))}
        self._context.log_event(dg.AssetMaterialization(key, partition=shard, metadata=facts, tags=versions))


def _told(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{shard}: {reason}" for shard, reason in reasons.items())


@asynccontextmanager
async def _engine(
    context: dg.AssetExecutionContext, engine: Engine, weights: Weights, job: Job
) -> AsyncIterator[EngineKeeper]:
    """The run's one engine, its model fetched to this machine first."""
    model = await to_its_end(weights.ensure_local, job.root, job.recipe.variant, WeightsProgress(context.log))
    context.log.info(f"starting the engine for {job.recipe.variant.hub_id}")
    begun = time.monotonic()

    def died(reason: str) -> None:
        context.log.warning(f"{reason}; starting another for what was under way")

    async with engine.start(model, job.recipe, died) as keeper:
        context.log.info(f"the engine is ready after {time.monotonic() - begun:.0f} s")
        yield keeper
        context.log.info(
            f"the engine died {keeper.deaths} times; {keeper.resent} videos had to be sent to it again for stage 2"
        )


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


def _metadata(table: Published, seconds: float) -> dict[str, dg.MetadataValue | int | float]:
    rows = table.rows
    statuses = Counter(row.status for row in rows)
    return {
        "rows": len(rows),
        "rows_ok": statuses[Status.OK],
        "rows_failed": statuses[Status.FAILED],
        "rows_reused": table.reused,
        "rows_new": sum(row.fingerprint is not None for row in rows) - table.reused,
        "truncated": sum(row.finish_reason == "length" for row in rows),
        "flagged": sum(bool(row.flags) for row in rows),
        "reduced": sum(bool(row.reductions) for row in rows),
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
