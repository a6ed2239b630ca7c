"""Captioning of shards, from manifest to published tables: the library's entry point, which the assets call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from itertools import chain

from caption_assets.captioning.caption_run import CaptionRun
from caption_assets.captioning.captioner import caption
from caption_assets.captioning.decoding import SandboxDecoder
from caption_assets.captioning.open_shard import OpenShard, Published
from caption_assets.captioning.prefix_cache import NO_HITS
from caption_assets.captioning.preview_store import PreviewStore
from caption_assets.captioning.reuse import EarlierRows, Reuse
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.captioning.threads import in_thread, to_thread_uncancelled
from caption_assets.captioning.window_job import Origin, StageRow, WindowJob
from caption_assets.errors import CaptionAssetsError, as_project_error
from caption_assets.sources.manifest import clip_pieces
from caption_assets.store.checkpoints import read_checkpoints
from caption_assets.store.failure_limits import Failures
from caption_assets.store.lease import Lease, LeaseHeld, Leases
from caption_assets.store.tables import (
    CLIP_MANIFEST,
    CaptionFile,
    CaptionRow,
    ManifestRow,
    TableError,
    extent,
    find_captions,
    read_captions,
    read_manifest,
)
from caption_assets.store.versions import captions_version, manifest_version, read_versions
from caption_assets.video.decode_in_worker import load_decoder
from caption_assets.workers.sandbox import Sandbox

CHECK_SECONDS = 1.0
"""Interval between checks for due checkpoints."""


class RunObserver:
    """Receives the events of a run. A subclass overrides those that it needs."""

    def started(self, shard: str, windows: int, unfinished: int) -> None:
        """A shard is opened. ``unfinished`` is the number of its windows that are not captioned yet."""

    def captioned(self, shard: str, done: int, windows: int, *, ok: bool) -> None:
        """A window of a shard is finished; ``ok`` if it has all captions."""

    def published(self, shard: str, published: Published) -> None:
        """The tables of a shard are published. Called in a thread and may block; the lease is renewed meanwhile."""

    def skipped(self, shard: str, reason: str) -> None:
        """A shard is skipped, because another run has its lease."""

    def failed(self, shard: str, error: CaptionAssetsError) -> None:
        """A shard could not be opened or published. Finished rows are in checkpoints; other shards continue."""

    def warned(self, message: str) -> None:
        """An error occurred that the run retries or ignores. May be called from another thread."""


async def caption_shards(
    engine: AbstractAsyncContextManager[EngineSupervisor],
    sandbox: Sandbox,
    run: CaptionRun,
    shards: Iterable[str],
    observers: Sequence[RunObserver],
) -> None:
    """Caption shards on one engine and publish each when all its windows are finished.

    The next shard starts while the last windows of the previous one are still in progress. Rows of earlier runs are
    reused; see ``Reuse``. A canceled run first writes finished rows to checkpoints.

    Any exception while a shard is opened, checkpointed, published or reported fails only that shard. Damaged
    checkpoints and caption tables of earlier runs are ignored with a warning.

    Args:
        engine: entered only if a window needs it.
        sandbox: decodes the windows.
        run: inputs, outputs and limits.
        shards: keys of the shards.
        observers: receive the run's events, in this order.

    Raises:
        EngineError: if the engine cannot be restarted. Finished rows are kept.
        ValueError: if the model is given by folder and the recipe has no digest of its weights.
    """
    if run.recipe.variant.path is not None and run.recipe.weights is None:
        raise ValueError(
            "the recipe of a model given by folder needs the digest of its weights: see models.mirror.content_digest"
        )

    def notify(send: Callable[[RunObserver], None]) -> None:
        for observer in observers:
            send(observer)

    def warn(message: str) -> None:
        notify(lambda observer: observer.warned(message))

    if not await in_thread(run.root.supports_create):
        warn(
            f"the store of {run.root.url} ignores If-None-Match, so that two runs may caption the same shard. "
            "Tables stay valid, and the last published ones are kept: start one run at a time"
        )
    with (
        Leases(run.root, run.owner, run.lease_seconds, warn) as leases,
        PreviewStore(run.root, warn) as previews,
    ):
        queue = _ShardQueue(run, leases, previews, notify, warn)
        jobs = queue.jobs(shards)
        if (first := await anext(jobs, None)) is None:
            return
        if any(stage.video for stage in run.stages):
            sandbox.start(load_decoder)  # while the engine starts: the first window waits for neither
        async with engine as supervisor, queue.checkpoints():
            with SandboxDecoder(sandbox, previews.store if run.previews else None) as decoder:
                await caption(supervisor, run.recipe, decoder, _chain(first, jobs), queue.finish)
        if queue.hits.is_low:
            warn(f"less than half of the predicted prefix cache hits: {queue.hits.summary}")


async def _chain(first: WindowJob, others: AsyncIterator[WindowJob]) -> AsyncIterator[WindowJob]:
    yield first
    async for job in others:
        yield job


_Notify = Callable[[Callable[[RunObserver], None]], None]


class _ShardQueue:
    """The open shards of a run. An error in one of them fails only that shard."""

    def __init__(
        self,
        run: CaptionRun,
        leases: Leases,
        previews: PreviewStore,
        notify: _Notify,
        warn: Callable[[str], None],
    ) -> None:
        self._run = run
        self._leases = leases
        self._previews = previews
        self._notify = notify
        self._warn = warn
        self._shards: dict[str, OpenShard] = {}
        self.hits = NO_HITS
        """Prefix cache hits, over all shards."""

    async def jobs(self, shards: Iterable[str]) -> AsyncIterator[WindowJob]:
        """The unfinished windows, shard by shard. A shard is leased and read when its first window is needed."""
        for key in shards:
            if (shard := await self._open_shard(key)) is None:
                continue
            for job in shard.unfinished:
                if self._shards.get(key) is not shard:  # the shard has failed meanwhile
                    break
                if shard.lease.loss:
                    await self._fail(shard, shard.lease.loss)
                    break
                yield job

    async def _open_shard(self, key: str) -> OpenShard | None:
        """Lease and read a shard. Return None if another run has leased it, or if it fails."""
        try:
            lease = await to_thread_uncancelled(self._leases.acquire, key)
        except LeaseHeld as error:
            reason = str(error)
            self._notify(lambda observer: observer.skipped(key, reason))
            return None
        except Exception as error:
            self._report_failure(key, error)
            return None
        try:
            shard = self._shards[key] = await to_thread_uncancelled(_read_shard, self._run, lease, self._warn)
            self._notify(lambda observer: observer.started(key, len(shard.jobs), len(shard.unfinished)))
        except Exception as error:
            self._shards.pop(key, None)
            self._report_failure(key, error)
            await to_thread_uncancelled(self._leases.release, lease)
            return None
        if not shard.unfinished:
            await self._publish(shard)
        return shard

    async def finish(self, job: WindowJob) -> None:
        """Add a finished window to its shard; publish the shard after the last one."""
        self.hits = sum(job.hits.values(), self.hits)
        shard = self._shards.get(job.shard)
        if shard is None:  # the shard has failed
            return
        try:
            shard.add(job)
            self._notify(
                lambda observer: observer.captioned(shard.lease.shard, shard.finished, len(shard.jobs), ok=job.ok)
            )
        except Exception as error:
            await self._fail(shard, error)
            return
        if shard.finished == len(shard.jobs):
            await self._publish(shard)
        elif shard.is_due:
            await self._save(shard)

    @asynccontextmanager
    async def checkpoints(self) -> AsyncIterator[None]:
        """Within the block, write due checkpoints; at its end, checkpoint all rows, also of unfinished windows."""
        saving = asyncio.create_task(self._save_periodically())
        try:
            yield
        finally:
            saving.cancel()
            for shard in list(self._shards.values()):
                await self._save(shard, unfinished=True)

    async def _save_periodically(self) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            for shard in list(self._shards.values()):
                if shard.is_due:
                    await self._save(shard)

    async def _save(self, shard: OpenShard, *, unfinished: bool = False) -> None:
        try:
            await shard.save(unfinished=unfinished)
        except Exception as error:  # the rows are kept for the next checkpoint
            self._warn(f"{shard.lease.shard}: a checkpoint could not be written: {as_project_error(error)}")

    async def _publish(self, shard: OpenShard) -> None:
        key = shard.lease.shard
        try:
            await to_thread_uncancelled(self._leases.check, shard.lease)
            published = await shard.publish()
        except Exception as error:
            await self._fail(shard, error)
            return
        await self._remove_checkpoints(shard)
        await to_thread_uncancelled(self._previews.wait, key)  # observers may show them
        try:
            await to_thread_uncancelled(self._notify, lambda observer: observer.published(key, published))
        except Exception as error:
            self._report_failure(key, error)
        await self._close(shard)

    async def _remove_checkpoints(self, shard: OpenShard) -> None:
        try:
            await shard.remove_checkpoints()
        except Exception as error:  # harmless: the next run removes them
            self._warn(f"{shard.lease.shard}: checkpoints could not be removed: {as_project_error(error)}")

    async def _fail(self, shard: OpenShard, error: Exception) -> None:
        """Close a shard with an error. Its finished rows go into a checkpoint, if that can be written."""
        del self._shards[shard.lease.shard]  # first: a window that finishes meanwhile must not publish it
        await self._save(shard)
        self._report_failure(shard.lease.shard, error)
        await to_thread_uncancelled(self._leases.release, shard.lease)

    def _report_failure(self, shard: str, error: Exception) -> None:
        self._notify(lambda observer: observer.failed(shard, as_project_error(error)))

    async def _close(self, shard: OpenShard) -> None:
        del self._shards[shard.lease.shard]
        await to_thread_uncancelled(self._leases.release, shard.lease)


def _read_shard(run: CaptionRun, lease: Lease, warn: Callable[[str], None]) -> OpenShard:
    """Read the shard of a lease, with the rows of earlier runs; ``warn`` receives messages about damaged ones."""
    shard = lease.shard
    # Read before the manifest: if it changes in between, the tables count as outdated.
    stored = read_versions(run.root, CLIP_MANIFEST, shard)
    manifest = read_manifest(run.root, shard)
    run.limits.check(CLIP_MANIFEST, Failures.of_manifest(manifest))
    inputs: dict[str, str] = {CLIP_MANIFEST: stored.data if stored else manifest_version(manifest)}
    wanted = {stage.name for stage in run.stages}
    needed: dict[str, list[CaptionRow]] = {}
    for name in sorted({name for stage in run.stages for name in stage.needs} - wanted):
        needed[name] = _stored_rows(run, name, shard, manifest)
        inputs[name] = captions_version(needed[name])
    published = list(_published_tables(run, shard, warn))
    earlier = EarlierRows(chain(published, read_checkpoints(run.root, shard, warn)))
    reuse = Reuse(run.recipe, run.max_attempts, earlier, run.engine_settings)
    former = {file.table: file for file in published}
    return OpenShard(run, lease, _plan_rows(run, shard, manifest, needed, reuse), inputs, former)


def _plan_rows(
    run: CaptionRun,
    shard: str,
    manifest: Sequence[ManifestRow],
    needed: Mapping[str, Sequence[CaptionRow]],
    reuse: Reuse,
) -> list[WindowJob]:
    """A window job for each row of a shard's manifest, with the reused rows of earlier runs."""
    jobs: list[WindowJob] = []
    for number, row in enumerate(manifest):
        rows = {name: StageRow(stored[number], Origin.REUSED) for name, stored in needed.items()}
        job = WindowJob(row, partial(clip_pieces, run.source, row), run.stages, shard, number, rows)
        job.set_previous(jobs[-1] if jobs else None)
        reuse.resolve(job)
        jobs.append(job)
    return jobs


def _published_tables(run: CaptionRun, shard: str, warn: Callable[[str], None]) -> Iterator[CaptionFile]:
    """The published tables of a shard that the run replaces."""
    for stage in run.stages:
        try:
            if published := find_captions(run.root, stage.name, shard):
                yield published
        except TableError as error:  # this run replaces the table
            warn(f"{shard}: its earlier captions are not reused: {error}")


def _stored_rows(run: CaptionRun, table: str, shard: str, manifest: Sequence[ManifestRow]) -> list[CaptionRow]:
    """The rows of a table that stages need and this run does not caption.

    Raises:
        TableError: if they do not match the manifest.
        TooManyFailures: if more of them failed than the run allows.
    """
    rows = read_captions(run.root, table, shard)
    if [extent(row) for row in rows] != [extent(row) for row in manifest]:
        raise TableError(f"{table} of shard {shard!r} does not match its current manifest: materialize {table} again")
    run.limits.check(table, Failures.of_captions(rows))
    return rows
