"""Shards from manifest to published caption tables: the library's entry point, which the Dagster assets call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from threading import Lock

from caption_assets.captioning.captioner import caption
from caption_assets.captioning.decoding import SandboxDecoder
from caption_assets.captioning.job import Job
from caption_assets.captioning.open_shard import OpenShard, Published
from caption_assets.captioning.prefix_cache import NO_HITS
from caption_assets.captioning.reuse import EarlierRows, Reuse
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.captioning.threads import in_thread, to_thread_uncancelled
from caption_assets.captioning.window_job import Origin, StageRow, WindowJob
from caption_assets.errors import CaptionAssetsError, as_project_error
from caption_assets.sources.manifest import clip_pieces
from caption_assets.store.checkpoints import read_checkpoints
from caption_assets.store.lease import Lease, LeaseHeld, Leases
from caption_assets.store.previews import write_preview
from caption_assets.store.root import Root
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
from caption_assets.video.preview import Preview
from caption_assets.workers.sandbox import Sandbox

LOOK_SECONDS = 1.0
"""Interval between checks for a due checkpoint."""


class RunObserver:
    """Receives the events of a run. A subclass overrides those that it needs."""

    def begun(self, shard: str, windows: int, left: int) -> None:
        """The first of a shard's windows enters the engine. ``left`` of them are still to be captioned."""

    def captioned(self, shard: str, done: int, windows: int, *, ok: bool) -> None:
        """Another window of a shard is finished; ``ok`` if it has all captions."""

    def published(self, shard: str, published: Published) -> None:
        """The tables of a shard are published. Runs in a thread and may take long: the shard stays leased meanwhile."""

    def skipped(self, shard: str, reason: str) -> None:
        """Another run holds the lease of a shard."""

    def failed(self, shard: str, error: CaptionAssetsError) -> None:
        """A shard could not be started or published. Finished rows are in checkpoints; other shards go on."""

    def warned(self, message: str) -> None:
        """Something failed that the run retries or can do without. May be called by another thread."""


async def caption_shards(
    engine: AbstractAsyncContextManager[EngineSupervisor],
    sandbox: Sandbox,
    job: Job,
    shards: Iterable[str],
    observers: Sequence[RunObserver],
) -> None:
    """Caption shards through one engine and publish each as soon as it is whole.

    The next shard's windows enter while the last one's tail is still being captioned. What earlier runs have made under
    the same fingerprint is taken over. If this is canceled, what is finished goes into checkpoints first.

    Whatever is raised while a shard is entered, checkpointed, published or reported fails that shard alone, foreseen or
    not. Checkpoints and earlier caption tables that are damaged count as absent, with a warning.

    Args:
        engine: entered when the first window needs it, if any does.
        sandbox: for decoding.
        job: what is made.
        shards: their keys.
        observers: receive the run's events, each in this order.

    Raises:
        EngineError: if there is no engine any more; what was finished stays.
        ValueError: if the recipe's model is one by folder, and the recipe does not identify its weights.
    """
    if job.recipe.variant.path is not None and job.recipe.weights is None:
        raise ValueError(
            "the recipe of a model given by folder needs the digest of its weights: see models.mirror.content_digest"
        )

    def notify(tell: Callable[[RunObserver], None]) -> None:
        for observer in observers:
            tell(observer)

    def warn(message: str) -> None:
        notify(lambda observer: observer.warned(message))

    if not await in_thread(job.root.supports_create):
        warn(
            f"the store of {job.root.url} ignores If-None-Match, so that two runs may caption one shard at once: its "
            "tables stay whole, and those that are published last stand; start one run at a time"
        )
    with Leases(job.root, job.owner, job.lease_seconds, warn) as leases:
        queue = _ShardQueue(job, leases, notify, warn)
        windows = queue.windows(shards)
        if (first := await anext(windows, None)) is None:
            return
        preview = _Previews(job.root, warn).keep if job.previews else None
        async with engine as supervisor, queue.checkpoints():
            with SandboxDecoder(sandbox, preview) as decoder:
                await caption(supervisor, job.recipe, decoder, _chain(first, windows), queue.take)
        if queue.hits.is_low:
            warn(f"the prefix cache saves less than half of what it could: {queue.hits.summary}")


async def _chain(first: WindowJob, others: AsyncIterator[WindowJob]) -> AsyncIterator[WindowJob]:
    yield first
    async for window in others:
        yield window


_Notify = Callable[[Callable[[RunObserver], None]], None]


class _Previews:
    """Keeps windows' previews. What cannot be written is warned of once a shard: no caption is lost over a picture."""

    def __init__(self, root: Root, warn: Callable[[str], None]) -> None:
        self._root = root
        self._warn = warn
        self._warned: set[str] = set()
        self._warning = Lock()

    def keep(self, window: WindowJob, preview: Preview) -> None:
        """Keep that of a window. May be called by several threads."""
        try:
            write_preview(self._root, window.shard, window.window.window_id, preview.animation, preview.poster)
        except Exception as error:
            with self._warning:
                if window.shard in self._warned:
                    return
                self._warned.add(window.shard)
            self._warn(
                f"{window.shard}: previews cannot be kept, of window {window.window.window_id} first: "
                f"{as_project_error(error)}"
            )


class _ShardQueue:
    """The shards under way. What goes wrong with one of them ends here, with that shard."""

    def __init__(self, job: Job, leases: Leases, notify: _Notify, warn: Callable[[str], None]) -> None:
        self._job = job
        self._leases = leases
        self._notify = notify
        self._warn = warn
        self._open: dict[str, OpenShard] = {}
        self.hits = NO_HITS
        """Of stage 2 in the prefix cache, over all shards."""

    async def windows(self, shards: Iterable[str]) -> AsyncIterator[WindowJob]:
        """The unfinished windows of shard after shard. Each shard is leased and read when its turn comes."""
        for key in shards:
            if (shard := await self._enter(key)) is None:
                continue
            for window in shard.left:
                if self._open.get(key) is not shard:  # it has failed meanwhile
                    break
                if shard.lease.loss:
                    await self._fail(shard, shard.lease.loss)
                    break
                yield window

    async def _enter(self, key: str) -> OpenShard | None:
        """A shard with all that is known of it, or None if it is not to be captioned by this run."""
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
            shard = self._open[key] = await to_thread_uncancelled(_open, self._job, lease, self._warn)
            self._notify(lambda observer: observer.begun(key, len(shard.windows), len(shard.left)))
        except Exception as error:
            self._open.pop(key, None)
            self._report_failure(key, error)
            await to_thread_uncancelled(self._leases.release, lease)
            return None
        if not shard.left:
            await self._publish(shard)
        return shard

    async def take(self, window: WindowJob) -> None:
        """Take a finished window; publish its shard if it was the last one."""
        self.hits += window.hits
        shard = self._open.get(window.shard)
        if shard is None:  # it has failed
            return
        try:
            shard.add(window)
            self._notify(
                lambda observer: observer.captioned(shard.lease.shard, shard.done, len(shard.windows), ok=window.ok)
            )
        except Exception as error:
            await self._fail(shard, error)
            return
        if shard.done == len(shard.windows):
            await self._publish(shard)
        elif shard.is_due:
            await self._save(shard)

    @asynccontextmanager
    async def checkpoints(self) -> AsyncIterator[None]:
        """Within the block finished rows go into checkpoints in time, and at its end all that are left."""
        watch = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watch.cancel()
            for shard in list(self._open.values()):
                await self._save(shard)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for shard in list(self._open.values()):
                if shard.is_due:
                    await self._save(shard)

    async def _save(self, shard: OpenShard) -> None:
        try:
            await shard.save()
        except Exception as error:  # no caption is lost yet
            self._warn(f"{shard.lease.shard}: a checkpoint could not be written: {as_project_error(error)}")

    async def _publish(self, shard: OpenShard) -> None:
        key = shard.lease.shard
        try:
            await to_thread_uncancelled(self._leases.check, shard.lease)
            published = await shard.publish()
        except Exception as error:
            await self._fail(shard, error)
            return
        await self._clear(shard)
        try:
            await to_thread_uncancelled(self._notify, lambda observer: observer.published(key, published))
        except Exception as error:
            self._report_failure(key, error)
        await self._leave(shard)

    async def _clear(self, shard: OpenShard) -> None:
        try:
            await shard.clear()
        except Exception as error:  # they do no harm, and the next run removes them
            self._warn(f"{shard.lease.shard}: checkpoints could not be removed: {as_project_error(error)}")

    async def _fail(self, shard: OpenShard, error: Exception) -> None:
        """Stop work on a shard. What is finished of it goes into a checkpoint, as far as that can be written."""
        del self._open[shard.lease.shard]  # first: results that come meanwhile must not publish it
        await self._save(shard)
        self._report_failure(shard.lease.shard, error)
        await to_thread_uncancelled(self._leases.release, shard.lease)

    def _report_failure(self, shard: str, error: Exception) -> None:
        self._notify(lambda observer: observer.failed(shard, as_project_error(error)))

    async def _leave(self, shard: OpenShard) -> None:
        del self._open[shard.lease.shard]
        await to_thread_uncancelled(self._leases.release, shard.lease)


def _open(job: Job, lease: Lease, warn: Callable[[str], None]) -> OpenShard:
    """The shard of a lease, with the rows of earlier runs; ``warn`` receives messages about damaged ones."""
    shard = lease.shard
    stored = read_versions(job.root, CLIP_MANIFEST, shard)  # first: a manifest published since is not taken for it
    manifest = read_manifest(job.root, shard)
    inputs: dict[str, str] = {CLIP_MANIFEST: stored.data if stored else manifest_version(manifest)}
    wanted = {stage.name for stage in job.stages}
    needed: dict[str, list[CaptionRow]] = {}
    for name in sorted({name for stage in job.stages for name in stage.needs} - wanted):
        needed[name] = _stored_rows(job, name, shard, manifest)
        inputs[name] = captions_version(needed[name])
    reuse = Reuse(job.recipe, job.max_attempts, EarlierRows(_earlier_files(job, shard, warn)), job.engine_settings)
    return OpenShard(job, lease, _plan_rows(job, shard, manifest, needed, reuse), inputs)


def _plan_rows(
    job: Job, shard: str, manifest: Sequence[ManifestRow], needed: Mapping[str, Sequence[CaptionRow]], reuse: Reuse
) -> list[WindowJob]:
    """A job for each row of a shard's manifest, with the rows of earlier runs that stay."""
    windows: list[WindowJob] = []
    for number, row in enumerate(manifest):
        rows = {name: StageRow(stored[number], Origin.REUSED) for name, stored in needed.items()}
        window = WindowJob(row, partial(clip_pieces, job.source, row), job.stages, shard, number, rows)
        window.follow(windows[-1] if windows else None)
        reuse.resolve(window)
        windows.append(window)
    return windows


def _earlier_files(job: Job, shard: str, warn: Callable[[str], None]) -> Iterator[CaptionFile]:
    """The published tables and the checkpoints of a shard, the oldest first."""
    for stage in job.stages:
        try:
            if published := find_captions(job.root, stage.name, shard):
                yield published
        except TableError as error:  # it will be replaced
            warn(f"{shard}: its earlier captions are not reused: {error}")
    yield from read_checkpoints(job.root, shard, warn)


def _stored_rows(job: Job, table: str, shard: str, manifest: Sequence[ManifestRow]) -> list[CaptionRow]:
    """The rows of a table that is needed and not made by this job.

    Raises:
        TableError: if they are not those of the manifest.
    """
    rows = read_captions(job.root, table, shard)
    if [extent(row) for row in rows] != [extent(row) for row in manifest]:
        raise TableError(f"{table} of shard {shard!r} is not of its present manifest: materialize {table} again")
    return rows
