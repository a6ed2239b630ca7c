"""What Prometheus is told of a captioning step: the engine's own metrics, and how far the shards are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any

from caption_assets.captioning.engine import CaptionEngine
from caption_assets.captioning.open_shard import Published
from caption_assets.captioning.shard_queue import RunObserver
from caption_assets.errors import CaptionAssetsError


class PortTaken(CaptionAssetsError):
    """A port for metrics on which something else listens."""


class Metrics:
    """Counts nothing: for steps of which nobody wants to know."""

    def windows(self, left: int) -> None:
        """So many more windows are under way, or fewer."""

    def captioned(self, *, ok: bool) -> None:
        """A window is done."""

    def shard(self, outcome: str) -> None:
        """A shard is ``published``, ``failed`` or ``skipped``."""

    def watch(self, starting: AbstractAsyncContextManager[CaptionEngine]) -> AbstractAsyncContextManager[CaptionEngine]:
        """Tell when an engine comes and goes."""
        return starting


class _Prometheus(Metrics):
    """Counts in the registry of this process, where vLLM counts as well."""

    def __init__(self, registry: Any) -> None:
        from prometheus_client import Counter, Gauge

        def made(kind: Any, name: str, about: str, labels: tuple[str, ...] = ()) -> Any:
            return kind(f"caption_{name}", about, labels, registry=registry)

        self._windows = made(Counter, "windows", "Windows done, by status", ("status",))
        self._in_flight = made(Gauge, "windows_in_flight", "Windows of the shards under way that are not done")
        self._shards = made(Counter, "shards", "Shards done, by outcome", ("outcome",))
        self._starts = made(Counter, "engine_starts", "Engines that were started")
        self._ready = made(Gauge, "engine_ready", "Whether there is an engine that takes requests")
        self.all = (self._windows, self._in_flight, self._shards, self._starts, self._ready)
        for status in ("ok", "failed"):
            self._windows.labels(status)  # a rate is of what was there before it grew
        for outcome in ("published", "failed", "skipped"):
            self._shards.labels(outcome)

    def windows(self, left: int) -> None:
        self._in_flight.inc(left)

    def captioned(self, *, ok: bool) -> None:
        self._windows.labels("ok" if ok else "failed").inc()

    def shard(self, outcome: str) -> None:
        self._shards.labels(outcome).inc()

    @asynccontextmanager
    async def watch(self, starting: AbstractAsyncContextManager[CaptionEngine]) -> AsyncIterator[CaptionEngine]:
        self._starts.inc()
        async with starting as engine:
            self._ready.set(1)
            try:
                yield engine
            finally:
                self._ready.set(0)


@contextmanager
def serve_metrics(port: int | None) -> Iterator[Metrics]:
    """Serve this process's metrics while the block runs; none where there is no port.

    Raises:
        PortTaken: if something else listens there.
    """
    if port is None:
        yield Metrics()
        return
    from prometheus_client import REGISTRY, start_http_server  # comes with vLLM; a slim installation has neither

    try:
        server, thread = start_http_server(port)
    except OSError as error:
        raise PortTaken(
            f"CAPTION_METRICS_PORT={port}: {error.strerror}; choose another, or unset it where steps share a host"
        ) from error
    metrics = _Prometheus(REGISTRY)
    try:
        yield metrics
    finally:
        for metric in metrics.all:
            REGISTRY.unregister(metric)
        server.shutdown()
        server.server_close()
        thread.join()


class Counted(RunObserver):
    """Progress that is counted before it is passed on."""

    def __init__(self, progress: RunObserver, metrics: Metrics) -> None:
        self._progress = progress
        self._metrics = metrics
        self._left: dict[str, int] = {}

    def begun(self, shard: str, windows: int, left: int) -> None:
        """Its windows are under way."""
        self._left[shard] = left
        self._metrics.windows(left)
        self._progress.begun(shard, windows, left)

    def captioned(self, shard: str, done: int, windows: int, *, ok: bool) -> None:
        """One of them is no longer."""
        self._left[shard] -= 1
        self._metrics.windows(-1)
        self._metrics.captioned(ok=ok)
        self._progress.captioned(shard, done, windows, ok=ok)

    def published(self, shard: str, published: Published) -> None:
        """Whether what was published is taken for good is the run's to say."""
        self._end(shard, "published")
        self._progress.published(shard, published)

    def failed(self, shard: str, error: CaptionAssetsError) -> None:
        """What was left of it will not be done."""
        self._end(shard, "failed")
        self._progress.failed(shard, error)

    def skipped(self, shard: str, reason: str) -> None:
        """It was never under way."""
        self._end(shard, "skipped")
        self._progress.skipped(shard, reason)

    def warned(self, message: str) -> None:
        """Pass it on."""
        self._progress.warned(message)

    def _end(self, shard: str, outcome: str) -> None:
        self._metrics.windows(-self._left.pop(shard, 0))
        self._metrics.shard(outcome)
