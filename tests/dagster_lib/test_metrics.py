from __future__ import annotations

import asyncio
import re
import socket
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from caption_assets.captioning.open_shard import Published
from caption_assets.captioning.task import NO_SECONDS
from caption_assets.dagster_lib.metrics import Counted, PortTaken, serve_metrics
from caption_assets.errors import CaptionAssetsError
from tests.captioning.watch import Log

pytestmark = pytest.mark.fast


@pytest.fixture
def port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


def read(port: int) -> dict[str, float]:
    """The project's metrics as Prometheus would read them."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    return {name: float(value) for name, value in re.findall(r"^(caption_\S+) (\S+)$", text, re.MULTILINE)}


def test_windows_and_shards_are_counted_as_they_are_done(port: int) -> None:
    log = Log()
    with serve_metrics(port) as metrics:
        counted = Counted(log, metrics)
        counted.begun("a", 5, 3)
        counted.begun("b", 4, 4)
        counted.captioned("a", 3, 5, ok=True)
        counted.captioned("a", 4, 5, ok=False)
        assert read(port)["caption_windows_in_flight"] == 5
        counted.captioned("a", 5, 5, ok=True)
        counted.published("a", Published({}, NO_SECONDS))
        counted.failed("b", CaptionAssetsError("why"))
        counted.skipped("c", "why not")
        found = read(port)
    assert found['caption_windows_total{status="ok"}'] == 2
    assert found['caption_windows_total{status="failed"}'] == 1
    assert found["caption_windows_in_flight"] == 0
    for outcome in ("published", "failed", "skipped"):
        assert found[f'caption_shards_total{{outcome="{outcome}"}}'] == 1
    assert (log.failures, log.skips) == ({"b": "why"}, {"c": "why not"})


def test_an_engine_is_ready_from_its_start_to_its_death(port: int) -> None:
    @asynccontextmanager
    async def engine() -> AsyncIterator[Any]:
        yield None

    async def two_engines() -> list[dict[str, float]]:
        seen = [read(port)]
        for _ in range(2):
            async with metrics.watch(engine()):
                seen.append(read(port))
            seen.append(read(port))
        return seen

    with serve_metrics(port) as metrics:
        seen = asyncio.run(two_engines())
    assert [(moment["caption_engine_ready"], moment["caption_engine_starts_total"]) for moment in seen] == [
        (0, 0),
        (1, 1),
        (0, 1),
        (1, 2),
        (0, 2),
    ]


def test_a_port_is_free_again_after_the_step_and_counts_begin_anew(port: int) -> None:
    for _ in range(2):
        with serve_metrics(port) as metrics:
            metrics.shard("published")
            assert read(port)['caption_shards_total{outcome="published"}'] == 1


def test_a_port_that_is_taken_is_named(port: int) -> None:
    with socket.socket() as other:
        other.bind(("", port))
        other.listen()
        with pytest.raises(PortTaken, match=f"CAPTION_METRICS_PORT={port}: Address already in use; choose another"):
            serve_metrics(port).__enter__()


def test_without_a_port_nothing_is_counted_and_everything_passed_on() -> None:
    log = Log()
    with serve_metrics(None) as metrics:
        counted = Counted(log, metrics)
        counted.begun("a", 1, 1)
        counted.captioned("a", 1, 1, ok=True)
        counted.warned("slow")
    assert log.warnings == ["slow"]
