"""Shards from manifest to published caption tables: the library's entry point, which the Dagster assets call."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Protocol

from caption_assets.captioning.decoding import SandboxDecoder
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.recovery import EngineKeeper
from caption_assets.captioning.stream import caption
from caption_assets.captioning.task import Captioned, Task
from caption_assets.clips.clip import content_tag, etag_tag
from caption_assets.clips.manifest import span_of
from caption_assets.clips.preview import Preview
from caption_assets.clips.sandbox import Sandbox
from caption_assets.errors import CaptionAssetsError
from caption_assets.store.previews import write_preview
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
class Job:
    """What is to be made of each shard."""

    root: Root
    source: Root
    recipe: Recipe
    tables: frozenset[Table]
    """Stage 1, stage 2 or both. Stage 2 alone takes the stage-1 captions that were published before."""
    previews: bool = False
    """Whether to keep a preview of each window."""


@dataclass(frozen=True, slots=True)
class Published:
    """One table that a job published."""

    path: str
    """Relative to the root."""
    rows: Sequence[CaptionRow]


class Progress(Protocol):
    """Told what happens to a run's shards, as it happens."""

    def begun(self, shard: str, windows: int) -> None:
        """A shard's windows are entering the engine."""

    def captioned(self, shard: str, done: int, windows: int) -> None:
        """Another row of a shard is done."""

    def published(self, shard: str, tables: Mapping[Table, Published]) -> None:
        """A shard is whole; ``tables`` holds stage 1 first."""

    def failed(self, shard: str, error: CaptionAssetsError) -> None:
        """A shard could not be begun or not be published; the others go on."""


async def caption_shards(
    keeper: EngineKeeper, sandbox: Sandbox, job: Job, shards: Iterable[str], progress: Progress
) -> None:
    """Caption shards through one engine and publish each as soon as it is whole.

    The next shard's windows enter while the last one's tail is still being captioned.

    Raises:
        EngineError: if there is no engine any more; what was published stays.
    """
    run = _Run(job, progress)
    with_stage2 = Table.STAGE2 in job.tables
    with SandboxDecoder(sandbox, partial(_keep_preview, job.root) if job.previews else None) as decoder:
        await caption(keeper, job.recipe, decoder, run.tasks(shards), run.take, with_stage2=with_stage2)


def _keep_preview(root: Root, task: Task, preview: Preview) -> None:
    write_preview(root, task.shard, task.window.window_id, preview.animation, preview.poster)


@dataclass(slots=True)
class _Open:
    """A shard under way."""

    keys: list[tuple[str, int | None]]
    """Of the manifest's rows, in order."""
    results: dict[int, Captioned]
    """By number of the row."""


class _Run:
    """The shards under way: each one's results until it is whole."""

    def __init__(self, job: Job, progress: Progress) -> None:
        self._job = job
        self._progress = progress
        self._open: dict[str, _Open] = {}

    async def tasks(self, shards: Iterable[str]) -> AsyncIterator[Task]:
        """The windows of shard after shard; each shard's manifest is read when its turn comes."""
        for shard in shards:
            try:
                tasks = await asyncio.to_thread(_tasks, self._job, shard)
            except CaptionAssetsError as error:
                self._progress.failed(shard, error)
                continue
            self._progress.begun(shard, len(tasks))
            self._open[shard] = _Open([task.window.key for task in tasks], {})
            for task in tasks:
                yield task
            if not tasks:
                await self._publish(shard)

    async def take(self, result: Captioned) -> None:
        """Keep a result; publish its shard if it was the last one missing."""
        shard = result.task.shard
        under_way = self._open[shard]
        under_way.results[result.task.number] = result
        done, windows = len(under_way.results), len(under_way.keys)
        self._progress.captioned(shard, done, windows)
        if done == windows:
            await self._publish(shard)

    async def _publish(self, shard: str) -> None:
        try:
            published = await asyncio.to_thread(_publish, self._job, shard, self._open.pop(shard))
        except CaptionAssetsError as error:
            self._progress.failed(shard, error)
        else:
            self._progress.published(shard, published)


def _publish(job: Job, shard: str, whole: _Open) -> dict[Table, Published]:
    results = [result for _, result in sorted(whole.results.items())]
    rows = {
        Table.STAGE1: [result.stage1 for result in results],
        Table.STAGE2: [result.stage2 for result in results if result.stage2 is not None],
    }
    published = {}
    for table in sorted(job.tables):
        path = publish_captions(job.root, table, shard, rows[table], whole.keys, facts(job.recipe, table))
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


def _tasks(job: Job, shard: str) -> list[Task]:
    manifest = read_manifest(job.root, shard)
    stage1 = {} if Table.STAGE1 in job.tables else _stored_stage1(job, shard, manifest)
    return [
        Task(row, partial(_read, job.source, row), stage1.get(row.key), shard, number)
        for number, row in enumerate(manifest)
    ]


def _read(source: Root, row: ManifestRow) -> bytes:
    span = span_of(source, row)
    try:
        found = span.info()
        data = span.read()
    except FileNotFoundError:
        raise ClipChanged(f"clip {row.clip_key!r} is gone: materialize clip_manifest again") from None
    whole = span.offset == 0 and found["size"] == span.size
    etag = found.get("ETag") if whole else None
    if len(data) != span.size or row.content_tag != (etag_tag(etag) if etag else content_tag(data)):
        raise ClipChanged(
            f"clip {row.clip_key!r} has changed since clip_manifest was materialized: materialize it again"
        )
    return data


def _stored_stage1(job: Job, shard: str, manifest: Sequence[ManifestRow]) -> dict[tuple[str, int | None], CaptionRow]:
    rows = read_captions(job.root, Table.STAGE1, shard)
    if [_extent(row) for row in rows] != [_extent(row) for row in manifest]:
        raise TableError(
            f"the stage-1 captions of shard {shard!r} are not of its present manifest: materialize {Table.STAGE1} again"
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
