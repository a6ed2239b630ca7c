"""Tests of real engines that crash or hang in the middle of a run."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from caption_assets.captioning.engine import EngineConfig, start_engine
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.captioning.window_job import WindowJob
from caption_assets.sample.clips import encode_frames
from caption_assets.sample.shards import SEEDS, SampleFile, sample_files
from caption_assets.store.tables import Status
from tests import poison_plugin
from tests.captioning.window_jobs import video_jobs
from tests.conftest import caption_all
from tests.processes import engine_processes
from tests.stages import STAGE1, STAGE2, STAGES

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

WINDOWS = 40
POISONED = 17


@pytest.fixture
def poison_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Install the plug-in for the engine's processes. It has no effect until ``FAULT`` is set."""
    poison_plugin.write_distribution(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # inherited by the engine's processes
    return monkeypatch


@pytest.fixture(scope="module")
def clips() -> list[SampleFile]:
    """The sample shards' clips of one window, repeated. The model captions them correctly."""
    files = [file for shard in SEEDS for file in sample_files(shard) if len(file.answers) == 1]
    return [files[number % len(files)] for number in range(WINDOWS)]


@pytest.fixture(scope="module")
def jobs(clips: list[SampleFile]) -> list[WindowJob]:
    return [job for number, clip in enumerate(clips) for job in video_jobs(clip.data, name=f"{number}.mp4")]


@pytest.fixture(scope="module")
def poisoned(jobs: list[WindowJob]) -> list[WindowJob]:
    """The same windows, one of them magenta."""
    frame = np.full((112, 140, 3), poison_plugin.MAGENTA, dtype=np.uint8)
    return [*jobs[:POISONED], *video_jobs(encode_frames([frame] * 24, 140, 112, 12, "h264", 18)),
            *jobs[POISONED + 1 :]]  # fmt: skip


def run(
    model: Path, jobs: list[WindowJob], config: EngineConfig, *, kill_after: float | None = None
) -> tuple[list[WindowJob], list[str]]:
    """The finished jobs, and the reasons of the engine's crashes."""
    crashes: list[str] = []
    before = engine_processes(os.getpid()).keys()

    async def kill_engine() -> None:
        await asyncio.sleep(kill_after or 0)
        for process, title in engine_processes(os.getpid()).items():
            if "EngineCore" in title and process not in before:
                process.send_signal(signal.SIGKILL)

    async def caption() -> list[WindowJob]:
        supervisor = EngineSupervisor(lambda: start_engine(model, Recipe(), config), on_crash=crashes.append)
        async with supervisor:
            killing = asyncio.create_task(kill_engine()) if kill_after is not None else None
            results = await caption_all(supervisor, Recipe(), jobs)
            assert killing is None or killing.done()
            return results

    results = asyncio.run(caption())
    _, alive = psutil.wait_procs(engine_processes(os.getpid()).keys() - before, timeout=5)
    assert not alive
    return results, crashes


def assert_correct(results: list[WindowJob], clips: list[SampleFile], *, except_for: int | None = None) -> None:
    for number, (done, clip) in enumerate(zip(results, clips, strict=True)):
        if number != except_for:
            found = {stage.name: done.row(stage).caption for stage in STAGES}
            assert found.items() <= clip.answers[0].items(), done.row(STAGE1).error


def test_killed_engine_loses_no_caption(model_folder: Path, jobs: list[WindowJob], clips: list[SampleFile]) -> None:
    results, crashes = run(model_folder, jobs, EngineConfig(), kill_after=1.0)
    assert len(crashes) == 1
    assert_correct(results, clips)


@pytest.mark.parametrize("fault", ["crash", "hang"])
def test_window_that_crashes_or_hangs_the_engine_is_found_and_all_others_are_captioned(
    poison_environment: pytest.MonkeyPatch,
    model_folder: Path,
    poisoned: list[WindowJob],
    clips: list[SampleFile],
    fault: str,
) -> None:
    poison_environment.setenv(poison_plugin.FAULT, fault)
    begun = time.monotonic()
    results, crashes = run(model_folder, poisoned, EngineConfig(request_timeout_seconds=25.0))
    assert len(crashes) == 3, f"after {time.monotonic() - begun:.0f} s: {crashes}"
    assert_correct(results, clips, except_for=POISONED)
    bad = results[POISONED]
    assert (bad.row(STAGE1).status, bad.row(STAGE1).error_kind) == (Status.FAILED, "poison")
    assert bad.row(STAGE2).error_kind == "upstream_failed"
    assert all(("no output for" in reason) == (fault == "hang") for reason in crashes)
