from __future__ import annotations

import asyncio
import re
import socket
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import REGISTRY

from caption_assets.captioning.open_shard import Published
from caption_assets.dagster_lib.metrics import PortTaken, serve_metrics
from caption_assets.errors import CaptionAssetsError
from tests.processes import free_port

pytestmark = pytest.mark.fast


@pytest.fixture
def port() -> int:
    return free_port()


def read(port: int) -> dict[str, float]:
    """The project's metrics, as Prometheus scrapes them."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    return {name: float(value) for name, value in re.findall(r"^(caption_\S+) (\S+)$", text, re.MULTILINE)}


def test_metrics_count_windows_and_shards(port: int) -> None:
    with serve_metrics(port) as metrics:
        metrics.started("a", 5, 3)
        metrics.started("b", 4, 4)
        metrics.captioned("a", 3, 5, ok=True)
        metrics.captioned("a", 4, 5, ok=False)
        assert read(port)["caption_windows_in_flight"] == 5
        metrics.captioned("a", 5, 5, ok=True)
        metrics.published("a", Published({}, {}))
        metrics.failed("b", CaptionAssetsError("why"))
        metrics.skipped("c", "why not")
        found = read(port)
    assert found['caption_windows_total{status="ok"}'] == 2
    assert found['caption_windows_total{status="failed"}'] == 1
    assert found["caption_windows_in_flight"] == 0
    for outcome in ("published", "failed", "skipped"):
        assert found[f'caption_shards_total{{outcome="{outcome}"}}'] == 1


def test_engine_metric_is_1_while_an_engine_runs(port: int) -> None:
    @asynccontextmanager
    async def engine() -> AsyncIterator[Any]:
        yield None

    async def two_engines() -> list[dict[str, float]]:
        samples = [read(port)]
        for _ in range(2):
            async with metrics.watch(engine()):
                samples.append(read(port))
            samples.append(read(port))
        return samples

    with serve_metrics(port) as metrics:
        samples = asyncio.run(two_engines())
    assert [(sample["caption_engine_ready"], sample["caption_engine_starts_total"]) for sample in samples] == [
        (0, 0),
        (1, 1),
        (0, 1),
        (1, 2),
        (0, 2),
    ]


def test_metrics_release_their_port_and_start_from_zero_in_the_next_step(port: int) -> None:
    for _ in range(2):
        with serve_metrics(port) as metrics:
            metrics.skipped("a", "why")
            assert read(port)['caption_shards_total{outcome="skipped"}'] == 1


def test_metrics_port_in_use_is_named(port: int) -> None:
    with socket.socket() as other:
        other.bind(("", port))
        other.listen()
        with pytest.raises(
            PortTaken, match=f"CAPTION_METRICS_PORT={port}: Address already in use; choose another port"
        ):
            serve_metrics(port).__enter__()


def test_metrics_without_a_port_leave_the_registry_empty() -> None:
    with serve_metrics(None) as metrics:
        metrics.started("a", 1, 1)
        metrics.captioned("a", 1, 1, ok=True)
        assert REGISTRY.get_sample_value("caption_windows_total", {"status": "ok"}) is None
