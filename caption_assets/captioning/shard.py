"""One shard from manifest to published caption tables: the library's entry point, which the Dagster assets call."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

from caption_assets.captioning.engine import CaptionEngine
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.two_stage import Captioned, Task, caption
from caption_assets.clips.clip import Clip, content_tag
from caption_assets.clips.shard import find_shard, list_clips
from caption_assets.store.root import Root
from caption_assets.store.tables import (
    CaptionRow,
    ManifestRow,
    Status,
    Table,
    TableError,
    publish_captions,
    read_captions,
    read_manifest,
)


class ClipChanged(Exception):
    """A clip whose bytes are not those that the manifest describes."""

    kind = "clip_changed"
    """One word for tables."""


STAGES = {Table.STAGE1: 1, Table.STAGE2: 2}


@dataclass(frozen=True, slots=True)
class ShardJob:
    """What is to be made of one shard."""

    root: Root
    source: Root
    shard: str
    recipe: Recipe
    tables: frozenset[Table]
    """Stage 1, stage 2 or both. Stage 2 alone takes the stage-1 captions that were published before."""


@dataclass(frozen=True, slots=True)
class Published:
    """One table that a job published."""

    path: str
    """Relative to the root."""
    rows: Sequence[CaptionRow]


async def caption_shard(
    engine: CaptionEngine, job: ShardJob, on_done: Callable[[int, int], None] = lambda _done, _total: None
) -> dict[Table, Published]:
    """Caption a shard and publish its tables, stage 1 first.

    Args:
        engine: a running engine, loaded with the recipe's model.
        job: what to do.
        on_done: called as each row is done, with the rows done so far and the rows in all.

    Raises:
        CaptionAssetsError: if the shard, its manifest or (for stage 2 alone) its stage-1 captions are missing, or
            belong to other contents than the manifest's.
    """
    manifest = read_manifest(job.root, job.shard)
    tasks = _tasks(job, manifest)
    done = 0

    def count(_: Captioned) -> None:
        nonlocal done
        done += 1
        on_done(done, len(tasks))

    captioned = await caption(engine, job.recipe, tasks, with_stage2=Table.STAGE2 in job.tables, on_done=count)
    rows = {
        Table.STAGE1: [result.stage1 for result in captioned],
        Table.STAGE2: [result.stage2 for result in captioned if result.stage2 is not None],
    }
    published = {}
    for table in sorted(job.tables):
        keys = [row.key for row in manifest]
        path = publish_captions(job.root, table, job.shard, rows[table], keys, facts(job.recipe, table))
        published[table] = Published(path, rows[table])
    return published


def facts(recipe: Recipe, table: Table) -> dict[str, str]:
    """File-level metadata of a caption table: versions, and all that its captions depend on beside the clips."""
    stage = STAGES[table]
    return {
        "caption_assets_version": version("caption-assets"),
        "recipe": json.dumps(recipe.identity(stage), sort_keys=True),
        "recipe_version": recipe.version(stage),
        "prompt": recipe.instruction(stage),
    }


def _tasks(job: ShardJob, manifest: Sequence[ManifestRow]) -> list[Task]:
    clips = {clip.key: clip for clip in list_clips(job.source, find_shard(job.source, job.shard))}
    stage1 = _stored_stage1(job, manifest) if Table.STAGE1 not in job.tables else {}
    return [Task(row, partial(_read, job, clips.get(row.clip_key), row), stage1.get(row.key)) for row in manifest]


def _read(job: ShardJob, clip: Clip | None, row: ManifestRow) -> bytes:
    data = clip.read(job.source.fs) if clip else b""
    if content_tag(data) != row.content_tag:
        raise ClipChanged(
            f"clip {row.clip_key!r} is gone or has changed since clip_manifest was materialized: materialize it again"
        )
    return data


def _stored_stage1(job: ShardJob, manifest: Sequence[ManifestRow]) -> dict[tuple[str, int | None], CaptionRow]:
    rows = read_captions(job.root, Table.STAGE1, job.shard)
    if [_extent(row) for row in rows] != [_extent(row) for row in manifest]:
        raise TableError(
            f"the stage-1 captions of shard {job.shard!r} are not of its present manifest: materialize "
            f"{Table.STAGE1} again"
        )
    return {row.key: row for row in rows}


def _extent(row: CaptionRow | ManifestRow) -> tuple[str, float | None, float | None]:
    """Which stretch of which content a row is about; the id alone does not tell how a clip was cut."""
    return row.window_id, row.start_seconds, row.end_seconds


def failed_fraction(rows: Sequence[CaptionRow]) -> float:
    """Share of the captionable windows (those with a window index) whose caption failed; 0 if there are none."""
    captionable = [row for row in rows if row.window_index is not None]
    failed = sum(row.status is Status.FAILED for row in captionable)
    return failed / len(captionable) if captionable else 0.0
