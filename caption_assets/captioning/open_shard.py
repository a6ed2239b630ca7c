"""A shard under way: what is done of it, how much of that is safe, and its publication once it is whole."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from caption_assets import __version__
from caption_assets.captioning.job import Job
from caption_assets.captioning.prefix_cache import NO_HITS
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.stages import STAGE1, STAGE2
from caption_assets.captioning.task import Captioned, StageSeconds, Task
from caption_assets.captioning.threads import to_thread_uncancelled
from caption_assets.store.checkpoints import remove_parts, write_part
from caption_assets.store.lease import Lease
from caption_assets.store.tables import CLIP_MANIFEST, CaptionRow, Status, publish_captions
from caption_assets.store.versions import TableVersions, captions_version

STAGES = {STAGE1.name: 1, STAGE2.name: 2}
WEIGHTS_ASSET = "model_weights"
"""Name of the weights among a table's inputs."""
INPUTS: Mapping[str, Sequence[str]] = {STAGE1.name: (CLIP_MANIFEST, WEIGHTS_ASSET), STAGE2.name: (STAGE1.name,)}
"""The direct inputs of each table. Stage 2 depends on the others through stage 1: see the assets of the captions."""


@dataclass(frozen=True, slots=True)
class PublishedTable:
    """One table that a job published."""

    path: str
    """Relative to the root."""
    rows: Sequence[CaptionRow]
    reused: int
    """Rows of them that earlier runs had made."""
    fresh: Sequence[CaptionRow]
    """Rows of them that this one made."""
    versions: TableVersions
    """As they are stored with it."""


@dataclass(frozen=True, slots=True)
class Published:
    """What a job published of one shard."""

    tables: Mapping[str, PublishedTable]
    """Stage 1 first."""
    spent: StageSeconds


class OpenShard:
    """The results of one shard until it is published.

    Args:
        job: what is made.
        lease: the shard's.
        beginnings: for each row of the manifest, in order, its result if earlier runs have settled it, or else a task.
        inputs: data versions of the tables that these were read from, by table.
    """

    def __init__(
        self, job: Job, lease: Lease, beginnings: Sequence[Captioned | Task], inputs: Mapping[str, str]
    ) -> None:
        self.lease = lease
        self._inputs = dict(inputs) | ({WEIGHTS_ASSET: job.weights_version} if job.weights_version else {})
        self.tasks = [one for one in beginnings if isinstance(one, Task)]
        """What is left to be made."""
        self._job = job
        self._keys = [(one if isinstance(one, Task) else one.task).window.key for one in beginnings]
        self._results = {number: one for number, one in enumerate(beginnings) if isinstance(one, Captioned)}
        self._reused = Counter(table for one in beginnings for table in _reused(one))
        self._unsaved: list[Captioned] = []
        self._unsaved_since = 0.0
        self._not_before = 0.0
        self._spent = StageSeconds()
        self.hits = NO_HITS
        """Of this run's stage 2 in the prefix cache."""
        self._new: list[Captioned] = []
        self._parts = 0
        self._saving = asyncio.Lock()

    @property
    def windows(self) -> int:
        """Rows of its manifest."""
        return len(self._keys)

    @property
    def done(self) -> int:
        """Rows that have their result."""
        return len(self._results)

    @property
    def is_due(self) -> bool:
        """Whether it is time for a checkpoint. One that cannot be written is not tried again at once."""
        now, rows = time.monotonic(), len(self._unsaved)
        if now < self._not_before:
            return False
        waited = now - self._unsaved_since
        return rows >= self._job.checkpoint_rows or (rows > 0 and waited >= self._job.checkpoint_seconds)

    def add(self, result: Captioned) -> None:
        """Take a result."""
        if not self._unsaved:
            self._unsaved_since = time.monotonic()
        self._unsaved.append(result)
        self._new.append(result)
        self._spent += result.spent
        self.hits += result.hits
        self._results[result.task.number] = result

    async def save(self) -> None:
        """Keep in a checkpoint what is not yet in one.

        Raises:
            StoreError: if it cannot be written; it is kept for the next time.
        """
        async with self._saving:
            results, self._unsaved = self._unsaved, []
            rows = {table: [row for result in results if (row := _made(result, table))] for table in self._job.tables}
            begun = time.monotonic()
            try:
                await to_thread_uncancelled(
                    write_part, self._job.root, self.lease.shard, self.lease.epoch, self._parts, rows
                )
            except BaseException:
                self._unsaved = results + self._unsaved
                self._not_before = time.monotonic() + self._job.checkpoint_seconds
                raise
            self._parts += 1
            self._spent += StageSeconds(store=time.monotonic() - begun)

    async def publish(self) -> Published:
        """Publish its tables, stage 1 first.

        Raises:
            StoreError: if the root cannot be written.
            TableError: if a row is missing or out of place.
        """
        return await to_thread_uncancelled(self._publish)

    async def clear(self) -> None:
        """Remove its checkpoints, once it is published.

        Raises:
            StoreError: if that cannot be done.
        """
        async with self._saving:  # not before one that is being written
            self._unsaved = []
            await to_thread_uncancelled(remove_parts, self._job.root, self.lease.shard, self.lease.epoch)

    def _publish(self) -> Published:
        begun = time.monotonic()
        job, shard = self._job, self.lease.shard
        results = [self._results[number] for number in sorted(self._results)]
        rows = {
            STAGE1.name: [result.stage1 for result in results],
            STAGE2.name: [result.stage2 for result in results if result.stage2 is not None],
        }
        published = {}
        for table in sorted(job.tables):
            fresh = [row for result in self._new if (row := _made(result, table))]
            versions = self._versions(table, rows[table])
            hits = self.hits.facts if table == STAGE2.name else {}
            stored = {**facts(job.recipe, table), **versions.facts, **hits}
            path = publish_captions(job.root, table, shard, rows[table], self._keys, stored)
            published[table] = PublishedTable(path, rows[table], self._reused[table], fresh, versions)
            self._inputs[table] = versions.data
        return Published(published, self._spent + StageSeconds(store=time.monotonic() - begun))

    def _versions(self, table: str, rows: Sequence[CaptionRow]) -> TableVersions:
        inputs = {name: self._inputs[name] for name in INPUTS[table] if name in self._inputs}
        return TableVersions(captions_version(rows), self._job.recipe.version(STAGES[table]), inputs)


def facts(recipe: Recipe, table: str) -> dict[str, str]:
    """File-level metadata of a caption table: versions, and all that its captions depend on beside the clips."""
    stage = STAGES[table]
    return {
        "caption_assets_version": __version__,
        "recipe": json.dumps(recipe.identity(stage), sort_keys=True),
        "recipe_version": recipe.version(stage),
        "prompt": recipe.instruction(stage),
        **({"weights": recipe.weights} if recipe.weights else {}),
    }


def failed_fraction(rows: Sequence[CaptionRow]) -> float:
    """Share of the captionable windows (those with a window index) whose caption failed; 0 if there are none."""
    captionable = [row for row in rows if row.window_index is not None]
    failed = sum(row.status is Status.FAILED for row in captionable)
    return failed / len(captionable) if captionable else 0.0


def _made(result: Captioned, table: str) -> CaptionRow | None:
    """The row of a table, unless it was there before or cannot be told from others."""
    row = result.stage2 if table == STAGE2.name else None if result.task.stage1 else result.stage1
    return row if row and row.fingerprint else None


def _reused(beginning: Captioned | Task) -> Iterator[str]:
    """The tables of which earlier runs have made the row."""
    if beginning.stage1 and beginning.stage1.fingerprint:
        yield STAGE1.name
    if isinstance(beginning, Captioned) and beginning.stage2 and beginning.stage2.fingerprint:
        yield STAGE2.name
