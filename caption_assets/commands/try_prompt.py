"""The command ``try-prompt``: a sample of a shard under another recipe, beside its stored captions.

It needs no Dagster, and writes nothing to the root.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow as pa

from caption_assets.captioning.open_shard import file_metadata
from caption_assets.captioning.prompts import text_hash
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.stages import Stage
from caption_assets.captioning.window_job import Origin, StageRow
from caption_assets.checks.stored_tables import StoredShard, StoredTable
from caption_assets.commands.spread import spread
from caption_assets.errors import CaptionAssetsError
from caption_assets.library.captioner import UnknownStage
from caption_assets.library.engine import open_engine
from caption_assets.library.sample_run import OpenEngine, Report, SampleRun
from caption_assets.models.mirror import content_digest
from caption_assets.models.weights import WeightsError
from caption_assets.report.comparison import Comparison, pair_rows
from caption_assets.report.recipe import recipe_checks
from caption_assets.report.trial import Trial, report_trial
from caption_assets.settings import Settings
from caption_assets.sources.shard import find_shard
from caption_assets.store.previews import Preview, StoredPreviews
from caption_assets.store.root import Root
from caption_assets.store.table_file import with_file_metadata
from caption_assets.store.tables import (
    CLIP_MANIFEST,
    CaptionFile,
    ManifestRow,
    Status,
    extent,
    published_schema,
    read_manifest,
    table_path,
)
from caption_assets.workers.sandbox import Sandbox


@dataclass(frozen=True, slots=True)
class ShardSample:
    """Windows of a shard, at equal distances."""

    root: Root
    """The root with the manifest and the stored captions. Nothing is written there."""
    source: Root
    """The source of the clips."""
    shard: str
    windows: Sequence[ManifestRow]
    """The sampled windows, in the manifest's order."""
    readable: int
    """Number of readable windows of the shard."""

    @classmethod
    def of(cls, root: Root, source: Root, shard: str, count: int) -> ShardSample:
        """Sample a shard.

        Raises:
            ShardError: if the source has no such shard.
            TableError: if the shard has no manifest.
            CaptionAssetsError: if no window of the shard is readable.
        """
        if not root.exists(table_path(CLIP_MANIFEST, shard)):
            find_shard(source, shard)  # raises if the name is wrong
        found = [row for row in read_manifest(root, shard) if row.status is Status.OK]
        if not found:
            raise CaptionAssetsError(f"no clip of shard {shard!r} can be read: see the errors in its {CLIP_MANIFEST}")
        return cls(root, source, shard, spread(found, count), len(found))


def try_prompt(
    settings: Settings, name: str, shard: str, *, windows: int, stage: str | None, output: Path, report: Report
) -> None:
    """Caption a sample of a shard under a recipe; print statistics, and write a page with the stored captions.

    Args:
        settings: the settings. Their recipe is replaced.
        name: a built-in recipe, or a YAML file.
        shard: the shard's key.
        windows: number of windows to caption.
        stage: the stage to compare; the stages that it needs are captioned too. None for all.
        output: the page.
        report: receives messages about the progress.

    Raises:
        RecipeError: if the recipe is invalid.
        UnknownStage: if the recipe has no such stage.
        ShardError: if the source has no such shard.
        TableError: if the shard has no manifest, or a table is damaged.
        CaptionAssetsError: if no window of the shard can be captioned.
        WeightsError: if the model cannot be downloaded.
        EngineError: if the engine does not start, or crashes too often.
    """
    recipe, storage = settings.with_recipe(name), settings.storage
    stages = _stages(recipe, stage)
    root = Root.open(storage.root_url, storage.root_access)
    sample = ShardSample.of(root, Root.open(storage.source_url, storage.source_access), shard, windows)
    for _ in recipe_checks(recipe, settings.weights):
        pass
    opener = partial(open_engine, settings, mirror=root)
    with Sandbox(settings.decode, settings.decode_workers) as sandbox:
        trial, previews = asyncio.run(make_trial(sample, recipe, stages, sandbox, opener, report))
    report_trial(trial, partial(_read_previews, StoredPreviews(root, shard), previews), output)


async def make_trial(
    sample: ShardSample,
    recipe: Recipe,
    stages: Sequence[Stage],
    sandbox: Sandbox,
    open_engine: OpenEngine,
    report: Report,
) -> tuple[Trial, Mapping[str, Preview]]:
    """Caption a sample under a recipe, and compare the captions with the stored ones.

    Args:
        sample: the windows.
        recipe: the recipe of the video model.
        stages: the stages to compare.
        sandbox: decodes the windows.
        open_engine: opens the engine of a recipe's model.
        report: receives messages about the progress.

    Returns:
        The trial, and previews of the windows that were decoded, by window id.

    Raises:
        TableError: if a stored table is damaged.
        EngineError: if an engine does not start, or crashes too often.
    """
    stored = _stored_tables(sample)
    run = SampleRun(sample.windows, sample.source, _earlier(stored), sandbox, open_engine, report)
    await _caption(run, recipe, stages, sample.root)
    trial = Trial(
        shard=sample.shard,
        recipe=recipe.graph.name,
        window_ids=[window.window_id for window in sample.windows],
        windows=sample.readable,
        comparisons=[_compare(sample, recipe, stage, stored, run.rows) for stage in stages],
        only_stored=[name for name in stored if name not in {stage.name for stage in recipe.stages}],
        only_new=[stage.name for stage in stages if stage.name not in stored],
    )
    return trial, run.previews


def _stages(recipe: Recipe, name: str | None) -> tuple[Stage, ...]:
    """The stages to compare."""
    names = [stage.name for stage in recipe.stages]
    if name is None:
        return recipe.stages
    if name not in names:
        raise UnknownStage(f"the recipe {recipe.graph.name!r} has no stage {name!r}: use {', '.join(names)}")
    return (recipe.graph.stage(name),)


def _stored_tables(sample: ShardSample) -> dict[str, StoredTable]:
    """The stored captions of the sample, by stage."""
    wanted, tables = (
        {extent(window) for window in sample.windows},
        StoredShard(sample.root, sample.shard).caption_tables(),
    )
    return {name: _part(table, wanted) for name, table in tables.items()}


def _earlier(stored: Mapping[str, StoredTable]) -> list[CaptionFile]:
    """The stored captions that may be reused. Failures are not: the trial shows whether the recipe has them."""
    return [
        CaptionFile(name, [one.row for one in table.captions], table.file_metadata) for name, table in stored.items()
    ]


async def _caption(run: SampleRun, recipe: Recipe, stages: Sequence[Stage], root: Root) -> None:
    """Caption the sample in these stages and in those that they need, model by model."""
    wanted = {other.name for stage in stages for other in (stage, *recipe.graph.upstream(stage))}
    for step in recipe.steps:
        if own := tuple(stage for stage in step.own_stages if stage.name in wanted):
            await run.caption(_identified(step, root), own)


def _identified(recipe: Recipe, root: Root) -> Recipe:
    """The recipe with the digests of weights given by folder, which the fingerprints of their captions contain."""
    with suppress(WeightsError):  # they are not mirrored: there are no captions to reuse either
        lora_weights = content_digest(root, recipe.lora) if recipe.lora else None
        return replace(recipe, weights=content_digest(root, recipe.variant), lora_weights=lora_weights)
    return recipe


def _compare(
    sample: ShardSample,
    recipe: Recipe,
    stage: Stage,
    stored: Mapping[str, StoredTable],
    rows: Sequence[Mapping[str, StageRow]],
) -> Comparison:
    """Compare the stored captions of a stage with those that were made anew."""
    made = [by_stage[stage.name] for by_stage in rows]
    fresh = [one.row for one in made if one.origin is not Origin.REUSED]
    schema = with_file_metadata(published_schema(stage.name, stage.columns), file_metadata(recipe, stage))
    new = StoredTable.of(stage.name, schema, fresh)
    old = stored.get(stage.name, StoredTable.of(stage.name, pa.schema([]), ()))
    old = _part(old, {extent(row) for row in fresh})
    own_prompts = {text_hash(window.prompt): window.prompt for window in sample.windows if window.prompt}
    return Comparison(
        sample.shard,
        ("stored captions", f"recipe {recipe.graph.name}"),
        (old, new),
        pair_rows(old, new),
        own_prompts,
        [("stored captions that the recipe keeps", f"{len(made) - len(fresh):,}")],
    )


def _part(table: StoredTable, extents: set[tuple[str, float | None, float | None]]) -> StoredTable:
    """The rows of a table that belong to some windows."""
    return StoredTable.of(table.table, table.schema, [row for row in table.rows if extent(row) in extents])


def _read_previews(
    stored: StoredPreviews, made: Mapping[str, Preview], window_ids: Sequence[str]
) -> dict[str, Preview]:
    """The previews of windows: stored ones, or those of the trial."""
    return {**{name: made[name] for name in window_ids if name in made}, **stored.read(window_ids)}
