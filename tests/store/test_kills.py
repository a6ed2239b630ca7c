"""Tests that kill runs on S3 repeatedly and compare the tables that the last run publishes."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest

from caption_assets.sample.clips import encode, random_clip
from caption_assets.sources.manifest import probe_clips
from caption_assets.sources.shard import find_shard
from caption_assets.store.checkpoints import read_checkpoints
from caption_assets.store.root import Root
from caption_assets.store.tables import publish_manifest, read_captions
from caption_assets.video.window import Windowing
from caption_assets.workers.sandbox import Sandbox
from tests.stages import STAGE1, STAGE2
from tests.videos import moving_video

NONDETERMINISTIC = {"prompt_tokens", "cached_tokens", "output_tokens", "attempts"}
"""Columns that may differ between two runs."""
CLIPS = 24
FAKE = "fake"


class RepeatedRuns:
    """Successive runs over one shard, each in its own process, on a series of roots."""

    def __init__(self, source: str, base: str, folder: Path, engine: str) -> None:
        self.source = Root.open(source)
        self.base = base
        self.request_log = folder / "requests"
        self.engine = engine
        self.roots = 0
        self.kills = 0
        self.seconds = 0.0
        """Duration of the last run; with a real engine, from its first request."""
        self.new_root()

    def new_root(self) -> None:
        """Start a new root with only the manifest."""
        self.roots += 1
        self.root = Root.open(f"{self.base}/root-{self.roots}")
        with Sandbox(workers=1) as sandbox:  # the session's workers use another server
            clips = probe_clips(sandbox, self.source, find_shard(self.source, "a"), Windowing(24, 12))
            publish_manifest(self.root, "a", (row for clip in clips for row in clip.rows), {})

    def run(self, killed_after: float | None = None) -> bool:
        """Run once, and kill the run after ``killed_after`` seconds; returns whether it completed."""
        parts = list(read_checkpoints(self.root, "a"))
        checkpointed = {(int(part.table == STAGE2.name) + 1, row.window_id) for part in parts for row in part.rows}
        self.request_log.write_text("")
        names = (self.root.url, self.source.url, "a", str(self.request_log), self.engine)
        command = [sys.executable, "-m", "tests.captioning.caption_process", *names]
        process = subprocess.Popen(command)
        if self.engine != FAKE:  # it starts for half a minute and writes nothing
            self._wait_for_a_request(process)
        start = time.monotonic()
        try:
            code = process.wait(killed_after)
        except subprocess.TimeoutExpired:
            descendants = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait()
            self.kills += 1
            _, alive = psutil.wait_procs(descendants, timeout=60)
            assert alive == []
            code = None
        self.seconds = time.monotonic() - start
        lines = [line.split() for line in self.request_log.read_text().splitlines()]
        requests = {(int(stage), window) for stage, window in lines}
        assert not checkpointed & requests, "a checkpointed caption was requested again"
        assert code in (None, 0)
        return code == 0

    def _wait_for_a_request(self, process: subprocess.Popen[bytes]) -> None:
        while process.poll() is None and not self.request_log.stat().st_size:
            time.sleep(0.05)

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        return {table: self._rows(table) for table in (STAGE1.name, STAGE2.name)}

    def _rows(self, table: str) -> list[dict[str, Any]]:
        found = [asdict(row) for row in read_captions(self.root, table, "a")]
        return [{name: value for name, value in row.items() if name not in NONDETERMINISTIC} for row in found]


def put_clips(source: str, clips: Iterable[bytes]) -> None:
    root = Root.open(source)
    for number, clip in enumerate(clips):
        root.write(f"a/clip-{number:02}.mp4", clip)


def textures() -> Iterator[bytes]:
    return (moving_video(48, size=(64 + 2 * number, 64), options={"preset": "ultrafast"}) for number in range(CLIPS))


def scenes() -> Iterator[bytes]:
    """Clips that the sample model captions."""
    return (encode(random_clip(60_000_000 + number)) for number in range(CLIPS))


def assert_kills_do_not_change_tables(runs: RepeatedRuns, kills: int, seed: int) -> None:
    """Kill at random moments; whenever a run completes, compare its tables, and start a new root."""
    moments = random.Random(seed)
    assert runs.run()
    duration = runs.seconds
    expected = runs.tables()
    assert {row["status"] for row in expected[STAGE2.name]} == {"ok"}
    runs.new_root()
    while runs.kills < kills:
        if runs.run(killed_after=moments.uniform(0.2, 1.0) * duration):
            assert runs.tables() == expected
            runs.new_root()
    assert runs.run()
    assert runs.tables() == expected


@pytest.mark.faults
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "kills", [pytest.param(3, marks=pytest.mark.representative), 10, pytest.param(50, marks=pytest.mark.nightly)]
)
def test_killed_runs_publish_the_same_tables(s3_url: str, tmp_path: Path, kills: int) -> None:
    put_clips(f"{s3_url}/shards", textures())
    assert_kills_do_not_change_tables(RepeatedRuns(f"{s3_url}/shards", s3_url, tmp_path, FAKE), kills, seed=kills)


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_killed_runs_with_the_real_engine_publish_the_same_tables(
    s3_url: str, tmp_path: Path, model_folder: Path
) -> None:
    put_clips(f"{s3_url}/shards", scenes())
    assert_kills_do_not_change_tables(RepeatedRuns(f"{s3_url}/shards", s3_url, tmp_path, str(model_folder)), 3, seed=5)
