"""An open shard: its window jobs, their checkpoints, and the publication of its tables."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from caption_assets.captioning.job import Job
from caption_assets.captioning.prefix_cache import NO_HITS
from caption_assets.captioning.quality import QUALITY_RULES
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.stages import STAGE1, STAGE2, Stage
from caption_assets.captioning.threads import to_thread_uncancelled
from caption_assets.captioning.window_job import DECODE, STORE, JobStatus, Origin, WindowJob
from caption_assets.store.checkpoints import remove_checkpoints, write_checkpoint
from caption_assets.store.lease import Lease
from caption_assets.store.tables import CLIP_MANIFEST, CaptionRow, Status, publish_captions
from caption_assets.store.versions import TableVersions, captions_version

WEIGHTS_ASSET = "model_weights"
"""Name of the weights among a table's inputs."""
INPUTS: Mapping[str, Sequence[str]] = {STAGE1.name: (CLIP_MANIFEST, WEIGHTS_ASSET), STAGE2.name: STAGE2.needs}
"""The direct inputs of each table. Stage 2 depends on the others through stage 1, as the assets do."""


@dataclass(frozen=True, slots=True)
class PublishedTable:
    """A table that a run published."""

    path: str
    """Relative to the root."""
    rows: Sequence[CaptionRow]
    reused: int
    """Number of rows from earlier runs."""
    fresh: Sequence[CaptionRow]
    """The rows of this run."""
    versions: TableVersions
    """The versions stored with the table."""


@dataclass(frozen=True, slots=True)
class Published:
    """The tables of one shard that a run published."""

    tables: Mapping[str, PublishedTable]
    """By name, in the recipe's order."""
    seconds: Mapping[str, float]
    """Seconds by stage, ``DECODE`` and ``STORE``, summed over windows that run concurrently."""

    @property
    def engine_seconds(self) -> float:
        """Seconds of all stages."""
        return sum(seconds for name, seconds in self.seconds.items() if name not in (DECODE, STORE))


class OpenShard:
    """The window jobs of one shard until its tables are published.

    Args:
        job: the captioning job of the run.
        lease: the shard's lease.
        windows: a window job for each row of the manifest, in order.
        inputs: data versions of the input tables, by name.
    """

    def __init__(self, job: Job, lease: Lease, windows: Sequence[WindowJob], inputs: Mapping[str, str]) -> None:
        self.lease = lease
        self.windows = windows
        self.finished = sum(one.status is JobStatus.FINISHED for one in windows)
        """Number of finished windows."""
        self.unfinished = [one for one in windows if one.status is not JobStatus.FINISHED]
        """The windows to caption."""
        self._inputs = dict(inputs) | ({WEIGHTS_ASSET: job.weights_version} if job.weights_version else {})
        self._job = job
        self._unsaved: list[WindowJob] = []
        self._unsaved_since = 0.0
        self._not_before = 0.0
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self.hits = NO_HITS
        """Prefix cache hits of this run."""
        self._parts = 0
        self._saving = asyncio.Lock()

    @property
    def is_due(self) -> bool:
        """Whether a checkpoint is due. After a failed one the next is due after ``checkpoint_seconds``."""
        now, rows = time.monotonic(), len(self._unsaved)
        if now < self._not_before:
            return False
        waited = now - self._unsaved_since
        return rows >= self._job.checkpoint_rows or (rows > 0 and waited >= self._job.checkpoint_seconds)

    def add(self, window: WindowJob) -> None:
        """Add a finished window."""
        if not self._unsaved:
            self._unsaved_since = time.monotonic()
        self._unsaved.append(window)
        for name, seconds in window.seconds.items():
            self._seconds[name] += seconds
        self.hits += window.hits
        self.finished += 1

    async def save(self) -> None:
        """Write a checkpoint with the rows that are not in one yet.

        Raises:
            StoreError: if it cannot be written; the next checkpoint then has these rows.
        """
        async with self._saving:
            windows, self._unsaved = self._unsaved, []
            rows = {stage.name: _fresh_rows(windows, stage) for stage in self._job.stages}
            started = time.monotonic()
            try:
                await to_thread_uncancelled(
                    write_checkpoint,
                    self._job.root,
                    self.lease.shard,
                    self.lease.epoch,
                    self._parts,
                    rows,
                    {QUALITY_RULES: str(self._job.recipe.quality_rules)},
                )
            except BaseException:
                self._unsaved = windows + self._unsaved
                self._not_before = time.monotonic() + self._job.checkpoint_seconds
                raise
            self._parts += 1
            self._seconds[STORE] += time.monotonic() - started

    async def publish(self) -> Published:
        """Publish the tables, in the recipe's order.

        Raises:
            StoreError: if they cannot be written.
            TableError: if a row is missing or out of place.
        """
        return await to_thread_uncancelled(self._publish)

    async def remove_checkpoints(self) -> None:
        """Remove the checkpoints after the publication.

        Raises:
            StoreError: if they cannot be removed.
        """
        async with self._saving:  # waits for a checkpoint that is being written
            self._unsaved = []
            await to_thread_uncancelled(remove_checkpoints, self._job.root, self.lease.shard, self.lease.epoch)

    def _publish(self) -> Published:
        started = time.monotonic()
        job, shard = self._job, self.lease.shard
        keys = [one.window.key for one in self.windows]
        published = {}
        for stage in job.stages:
            rows = [one.row(stage) for one in self.windows if stage.name in one.rows]
            versions = self._versions(stage, rows)
            hits = self.hits.file_metadata if stage.needs else {}
            metadata = {**file_metadata(job.recipe, stage), **versions.file_metadata, **hits}
            path = publish_captions(job.root, stage.name, shard, rows, keys, metadata)
            reused = sum(one.rows[stage.name].origin is Origin.REUSED for one in self.windows)
            fresh = _fresh_rows(self.windows, stage)
            published[stage.name] = PublishedTable(path, rows, reused, fresh, versions)
            self._inputs[stage.name] = versions.data
        self._seconds[STORE] += time.monotonic() - started
        return Published(published, self._seconds)

    def _versions(self, stage: Stage, rows: Sequence[CaptionRow]) -> TableVersions:
        inputs = {name: self._inputs[name] for name in INPUTS[stage.name] if name in self._inputs}
        return TableVersions(captions_version(rows), self._job.recipe.version(stage), inputs)


def file_metadata(recipe: Recipe, stage: Stage) -> dict[str, str]:
    """File metadata of a caption table: versions, and everything but the clips that its captions depend on."""
    return {
        "caption_assets_version": version("caption-assets"),
        "recipe": json.dumps(recipe.identity(stage), sort_keys=True),
        "recipe_version": recipe.version(stage),
        "prompt": recipe.template(stage),
        QUALITY_RULES: str(recipe.quality_rules),
        **({"weights": recipe.weights} if recipe.weights else {}),
    }


def failed_fraction(rows: Sequence[CaptionRow]) -> float:
    """Share of failed captions among captionable windows (those with a window index); 0 if there are none."""
    captionable = [row for row in rows if row.window_index is not None]
    failed = sum(row.status is Status.FAILED for row in captionable)
    return failed / len(captionable) if captionable else 0.0


def _fresh_rows(windows: Sequence[WindowJob], stage: Stage) -> list[CaptionRow]:
    """The rows of a stage from this run."""
    found = (one.rows.get(stage.name) for one in windows)
    return [made.row for made in found if made and made.origin is Origin.FRESH]
