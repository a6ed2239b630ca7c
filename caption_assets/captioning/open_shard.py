"""An open shard: its window jobs, their checkpoints, and the publication of its tables."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

from caption_assets.captioning.caption_run import CaptionRun
from caption_assets.captioning.prefix_cache import CacheHits
from caption_assets.captioning.previous_text import previous_prompts, with_previous
from caption_assets.captioning.quality import QUALITY_RULES
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.stages import Stage
from caption_assets.captioning.threads import to_thread_uncancelled
from caption_assets.captioning.window_job import DECODE, STORE, JobStatus, Origin, WindowJob
from caption_assets.store.checkpoints import remove_checkpoints, write_checkpoint
from caption_assets.store.lease import Lease
from caption_assets.store.tables import CLIP_MANIFEST, CaptionFile, CaptionRow, publish_captions
from caption_assets.store.versions import TableVersions, captions_version

WEIGHTS_ASSET = "model_weights"
"""Name of the weights among a table's inputs."""
RECIPE, RECIPE_NAME, RECIPE_VERSION = "recipe", "recipe_name", "recipe_version"
STAGE_PROMPT, UPSTREAM_PROMPTS = "prompt", "upstream_prompts"
"""Keys of a caption table's file metadata. The prompts of the stages upstream are a JSON object."""


def direct_inputs(stage: Stage) -> Sequence[str]:
    """The direct inputs of a stage's table, as in the asset graph: it depends on the others through the needed ones."""
    weights = (WEIGHTS_ASSET,) if stage.model or not stage.needs else ()
    return (*(stage.needs or (CLIP_MANIFEST,)), *weights)


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
    former: Mapping[str, str] = field(default_factory=dict)
    """File metadata of the table that it replaced; empty if there was none."""


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
        run: the captioning run.
        lease: the shard's lease.
        jobs: a window job for each row of the manifest, in order.
        inputs: data versions of the input tables, by name.
        former: the tables that will be replaced, by name.
    """

    def __init__(
        self,
        run: CaptionRun,
        lease: Lease,
        jobs: Sequence[WindowJob],
        inputs: Mapping[str, str],
        former: Mapping[str, CaptionFile],
    ) -> None:
        self.lease = lease
        self.jobs = jobs
        self.finished = sum(job.status is JobStatus.FINISHED for job in jobs)
        """Number of finished windows."""
        self.unfinished = [job for job in jobs if job.status is not JobStatus.FINISHED]
        """The windows to caption."""
        self._inputs = dict(inputs) | ({WEIGHTS_ASSET: run.weights_version} if run.weights_version else {})
        self._former = former
        self._run = run
        self._added: set[WindowJob] = set()
        self._unsaved: list[WindowJob] = []
        self._unsaved_since = 0.0
        self._not_before = 0.0
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._hits: defaultdict[str, CacheHits] = defaultdict(CacheHits)
        self._parts = 0
        self._saving = asyncio.Lock()

    @property
    def is_due(self) -> bool:
        """Whether a checkpoint is due. A failed checkpoint is retried after ``checkpoint_seconds``."""
        now, rows = time.monotonic(), len(self._unsaved)
        if now < self._not_before:
            return False
        waited = now - self._unsaved_since
        return rows >= self._run.checkpoint_rows or (rows > 0 and waited >= self._run.checkpoint_seconds)

    def add(self, job: WindowJob) -> None:
        """Add a finished window."""
        if not self._unsaved:
            self._unsaved_since = time.monotonic()
        self._unsaved.append(job)
        self._added.add(job)
        for name, seconds in job.seconds.items():
            self._seconds[name] += seconds
        for name, hits in job.hits.items():
            self._hits[name] += hits
        self.finished += 1

    async def save(self, *, unfinished: bool = False) -> None:
        """Write a checkpoint with the rows that are not in one yet.

        Args:
            unfinished: whether to include windows with missing rows, at the end of a run.

        Raises:
            StoreError: if it cannot be written; the next checkpoint then has these rows.
        """
        async with self._saving:
            jobs, self._unsaved = self._unsaved, []
            others = [job for job in self.unfinished if job not in self._added] if unfinished else []
            rows = {stage.name: _fresh_rows([*jobs, *others], stage) for stage in self._run.stages}
            started = time.monotonic()
            try:
                await to_thread_uncancelled(
                    write_checkpoint,
                    self._run.root,
                    self.lease.shard,
                    self.lease.epoch,
                    self._parts,
                    rows,
                    {QUALITY_RULES: str(self._run.recipe.quality_rules)},
                    {stage.name: stage.columns for stage in self._run.stages},
                )
            except BaseException:
                self._unsaved = jobs + self._unsaved
                self._not_before = time.monotonic() + self._run.checkpoint_seconds
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
        """Remove the checkpoints of the tables after their publication.

        Raises:
            StoreError: if they cannot be removed.
        """
        async with self._saving:  # waits for a checkpoint that is being written
            self._unsaved = []
            tables = [stage.name for stage in self._run.stages]
            await to_thread_uncancelled(remove_checkpoints, self._run.root, self.lease.shard, self.lease.epoch, tables)

    def _publish(self) -> Published:
        started = time.monotonic()
        run, shard = self._run, self.lease.shard
        keys = [job.window.key for job in self.jobs]
        published = {}
        for stage in run.stages:
            former = self._former.get(stage.name, CaptionFile(stage.name, (), {}))
            made = [job.row(stage) for job in self.jobs if stage.name in job.rows]
            rows = with_previous(made, former.rows, stage.columns.score)
            versions = self._versions(stage, rows)
            hits = self._hits[stage.name].file_metadata
            metadata = {
                **file_metadata(run.recipe, stage),
                **previous_prompts(rows, former, former.metadata.get(STAGE_PROMPT)),
                **versions.file_metadata,
                **hits,
            }
            path = publish_captions(run.root, stage.name, shard, rows, keys, metadata, stage.columns)
            reused = sum(job.rows[stage.name].origin is Origin.REUSED for job in self.jobs)
            fresh = _fresh_rows(self.jobs, stage)
            published[stage.name] = PublishedTable(path, rows, reused, fresh, versions, former.metadata)
            self._inputs[stage.name] = versions.data
        self._seconds[STORE] += time.monotonic() - started
        return Published(published, self._seconds)

    def _versions(self, stage: Stage, rows: Sequence[CaptionRow]) -> TableVersions:
        inputs = {name: self._inputs[name] for name in direct_inputs(stage) if name in self._inputs}
        return TableVersions(captions_version(rows), self._run.recipe.version(stage), inputs)


def file_metadata(recipe: Recipe, stage: Stage) -> dict[str, str]:
    """File metadata of a caption table: versions, and everything that its captions depend on except the clips."""
    return {
        "caption_assets_version": version("caption-assets"),
        RECIPE: json.dumps(recipe.identity(stage), sort_keys=True),
        RECIPE_NAME: recipe.graph.name,
        RECIPE_VERSION: recipe.version(stage),
        STAGE_PROMPT: stage.prompt,
        UPSTREAM_PROMPTS: json.dumps({other.name: other.prompt for other in recipe.graph.upstream(stage)}),
        QUALITY_RULES: str(recipe.quality_rules),
        **({"weights": recipe.weights} if recipe.weights else {}),
    }


def _fresh_rows(jobs: Sequence[WindowJob], stage: Stage) -> list[CaptionRow]:
    """The rows of a stage from this run."""
    found = (job.rows.get(stage.name) for job in jobs)
    return [row.row for row in found if row and row.origin is Origin.FRESH]
