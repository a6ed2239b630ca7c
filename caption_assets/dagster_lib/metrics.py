"""Prometheus metrics of a captioning step: windows, shards and engine, beside vLLM's own metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any

from caption_assets.captioning.engine import CaptionEngine
from caption_assets.captioning.open_shard import Published
from caption_assets.captioning.shard_queue import RunObserver
from caption_assets.errors import CaptionAssetsError


class PortTaken(CaptionAssetsError):
    """A metrics port that another process listens on."""


class Metrics(RunObserver):
    """Metrics that are not exported: no port is configured."""

    def watch(self, starting: AbstractAsyncContextManager[CaptionEngine]) -> AbstractAsyncContextManager[CaptionEngine]:
        """Wrap a starting engine, to count its start and to report whether an engine is ready."""
        return starting


class _Prometheus(Metrics):
    """Metrics in this process's registry, which also contains those of vLLM."""

    def __init__(self, registry: Any) -> None:
        from prometheus_client import Counter, Gauge

        def create(kind: Any, name: str, description: str, labels: tuple[str, ...] = ()) -> Any:
            return kind(f"caption_{name}", description, labels, registry=registry)

        self._windows = create(Counter, "windows", "Finished windows, by status", ("status",))
        self._in_flight = create(Gauge, "windows_in_flight", "Unfinished windows of the shards in progress")
        self._shards = create(Counter, "shards", "Finished shards, by outcome", ("outcome",))
        self._starts = create(Counter, "engine_starts", "Engine starts")
        self._ready = create(Gauge, "engine_ready", "1 while an engine takes requests, else 0")
        self.all = (self._windows, self._in_flight, self._shards, self._starts, self._ready)
        self._unfinished: dict[str, int] = {}
        for status in ("ok", "failed"):
            self._windows.labels(status)  # rate() misses the first increase unless a zero was exported before
        for outcome in ("published", "failed", "skipped"):
            self._shards.labels(outcome)

    def started(self, shard: str, windows: int, unfinished: int) -> None:
        self._unfinished[shard] = unfinished
        self._in_flight.inc(unfinished)

    def captioned(self, shard: str, done: int, windows: int, *, ok: bool) -> None:
        self._unfinished[shard] -= 1
        self._in_flight.dec()
        self._windows.labels("ok" if ok else "failed").inc()

    def published(self, shard: str, published: Published) -> None:
        """Count the shard as published, whether or not its checks pass afterwards."""
        self._end(shard, "published")

    def failed(self, shard: str, error: CaptionAssetsError) -> None:
        self._end(shard, "failed")

    def skipped(self, shard: str, reason: str) -> None:
        self._end(shard, "skipped")

    def _end(self, shard: str, outcome: str) -> None:
        self._in_flight.dec(self._unfinished.pop(shard, 0))
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
    """Serve this process's metrics while the block runs, if there is a port.

    Raises:
        PortTaken: if another process listens on the port.
    """
    if port is None:
        yield Metrics()
        return
    from prometheus_client import REGISTRY, start_http_server  # installed with vLLM; a slim installation lacks both

    try:
        server, thread = start_http_server(port)
    except OSError as error:
        raise PortTaken(
            f"CAPTION_METRICS_PORT={port}: {error.strerror}; choose another port, or unset the setting where steps "
            "share a host"
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
