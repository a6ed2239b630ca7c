"""Tests of faults between this machine and a store, and of the recovery from them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from caption_assets.captioning.caption_run import CaptionRun
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.shard_queue import caption_shards
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.models.cache import ensure_local
from caption_assets.models.mirror import publish
from caption_assets.sources.manifest import probe_clips, span_of
from caption_assets.sources.shard import find_shard, list_shards, shard_content
from caption_assets.store import s3
from caption_assets.store.access import Access
from caption_assets.store.failure import StoreError
from caption_assets.store.root import Root
from caption_assets.store.span import Span
from caption_assets.store.tables import publish_manifest, read_captions, read_manifest
from caption_assets.video.window import Windowing
from caption_assets.workers.sandbox import Sandbox
from tests.captioning.fake_engine import FakeEngine, start_fake_engine
from tests.captioning.run_events import RunEvents
from tests.sources.conftest import tar_bytes
from tests.stages import STAGE1, STAGE2, STAGES
from tests.store.conftest import StartProxy
from tests.store.fault_proxy import FAULTS, Breakdown, Fault, Refusal, random_faults
from tests.videos import counting_video, noise_video

pytestmark = pytest.mark.store

SHORT_TIMEOUT = Access(read_timeout_seconds=1.0)
DATA = bytes(range(256)) * 1200


@pytest.fixture(autouse=True)
def _fast_uploads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Detect a stalled upload within two seconds."""
    monkeypatch.setattr(s3, "MIN_UPLOAD_RATE", 64 << 20)


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_every_kind_of_request_survives_every_fault(s3_url: str, start_proxy: StartProxy, fault: Fault) -> None:
    Root.open(s3_url).write("data", DATA)
    proxy = start_proxy([fault] * 6)
    root = Root.open(s3_url, SHORT_TIMEOUT)
    span = Span(f"{s3_url}/data", 100, 200_000, access=SHORT_TIMEOUT)
    requests: list[tuple[Callable[[], object], object]] = [
        (partial(root.read, "data"), DATA),
        (span.read, DATA[100:200_100]),
        (lambda: span.info()["size"], len(DATA)),
        (partial(root.names, "empty"), []),
        (partial(root.write, "new", DATA), None),
        (partial(root.create, "lock", b"mine"), True),
    ]
    with ThreadPoolExecutor(len(requests)) as pool:
        assert list(pool.map(lambda request: request[0](), requests)) == [result for _, result in requests]
    assert proxy.requests[fault] == 6
    assert (root.read("new"), root.read("lock")) == (DATA, b"mine")


def test_download_survives_broken_responses(s3_url: str, start_proxy: StartProxy, tmp_path: Path) -> None:
    Root.open(s3_url).write("data", DATA)
    start_proxy([None, Breakdown.CUT, Breakdown.STALLED_BODY, Breakdown.CUT])
    Root.open(s3_url, SHORT_TIMEOUT).download("data", tmp_path / "data")
    assert (tmp_path / "data").read_bytes() == DATA


@pytest.mark.parametrize("fault", [Refusal(500, "InternalError"), Breakdown.LOST, Breakdown.STALL], ids=str)
def test_retries_end_when_the_store_never_responds(s3_url: str, start_proxy: StartProxy, fault: Fault) -> None:
    proxy = start_proxy(itertools.repeat(fault))
    root = Root.open(s3_url, Access(attempts=3, read_timeout_seconds=0.3))
    for use in (lambda: root.read("data"), lambda: root.write("data", DATA)):
        before = proxy.requests.total()
        with pytest.raises(StoreError, match=rf"cannot (read|write) {s3_url}/data: .* also for all retries"):
            use()
        assert 3 <= proxy.requests.total() - before <= 6  # aiohttp also retries a broken connection


def test_whole_chain_survives_random_faults(s3_url: str, start_proxy: StartProxy, tmp_path: Path) -> None:
    shards, clip = Root.open(f"{s3_url}/shards"), noise_video(size=(320, 240), frames=40)
    for index in range(5):
        shards.write(f"folder/{index}.mp4", clip)
    shards.write("tar.tar", tar_bytes(*((f"{index}.mp4", counting_video(30)) for index in range(5))))
    shards.write("list.jsonl", "".join(f'{{"uri": "folder/{index}.mp4"}}\n' for index in range(5)).encode())
    expected = dict(_run_chain(Root.open(f"{s3_url}/clean"), shards, tmp_path / "clean"))
    proxy = start_proxy(random_faults(0.1, seed=5))
    root, source = Root.open(f"{s3_url}/faulty", SHORT_TIMEOUT), Root.open(f"{s3_url}/shards", SHORT_TIMEOUT)
    assert dict(_run_chain(root, source, tmp_path / "faulty")) == expected
    assert 0.05 < 1 - proxy.requests[None] / proxy.requests.total() < 0.2


def _run_chain(root: Root, source: Root, cache: Path) -> Iterator[tuple[str, object]]:
    """Everything that the chain reads and publishes, by name, with a fake engine."""
    with Sandbox(workers=2) as sandbox:
        for shard in list_shards(source).shards:
            yield f"{shard.key} version", shard_content(source, shard).version
            probed = probe_clips(sandbox, source, find_shard(source, shard.key), Windowing())
            publish_manifest(root, shard.key, (row for clip in probed for row in clip.rows), {})
            rows = read_manifest(root, shard.key)
            yield f"{shard.key} manifest", rows
            yield f"{shard.key} clips", [span_of(source, row).read() for row in rows]
            events = RunEvents()
            run = CaptionRun(root, source, Recipe(), STAGES, checkpoint_rows=4)
            engine = EngineSupervisor(lambda: start_fake_engine(FakeEngine()))
            asyncio.run(caption_shards(engine, sandbox, run, [shard.key], [events]))
            yield f"{shard.key} events", (events.failures, events.skips, events.warnings)
            for table in (STAGE1.name, STAGE2.name):
                yield f"{shard.key} {table}", read_captions(root, table, shard.key)
    yield "lease", [root.create("lease", b"mine"), root.create("lease", b"other's"), root.names("")]
    yield "weights", publish(root, Recipe().variant, cache)
    folder = ensure_local(root, Recipe().variant, cache)
    yield "model", {path.name: path.stat().st_size for path in folder.iterdir()}
