"""Real engines that crash and hang in the middle of a run, in real processes."""

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
from caption_assets.captioning.stages import STAGE1, STAGE2
from caption_assets.captioning.supervisor import EngineSupervisor
from caption_assets.captioning.window_job import WindowJob
from caption_assets.sample.clips import encode_frames
from caption_assets.sample.shards import SEEDS, SampleFile, sample_files
from caption_assets.store.tables import Status
from tests import poison_plugin
from tests.captioning.window_jobs import video_jobs
from tests.conftest import caption_all
from tests.processes import engine_processes

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

WINDOWS = 40
POISONED = 17


@pytest.fixture
def plugin_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Lets the engine's processes find the plug-in; what it does is still to be set."""
    poison_plugin.write_distribution(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # which the engine's processes inherit
    return monkeypatch


@pytest.fixture(scope="module")
def films() -> list[SampleFile]:
    """The sample shards' clips of one window, over and over: the model is known to get them right."""
    files = [file for shard in SEEDS for file in sample_files(shard) if len(file.captions) == 1]
    return [files[number % len(files)] for number in range(WINDOWS)]


@pytest.fixture(scope="module")
def jobs(films: list[SampleFile]) -> list[WindowJob]:
    return [job for number, film in enumerate(films) for job in video_jobs(film.data, name=f"{number}.mp4")]


@pytest.fixture(scope="module")
def poisoned(jobs: list[WindowJob]) -> list[WindowJob]:
    """The same windows, one of them all magenta."""
    frame = np.full((112, 140, 3), poison_plugin.MAGENTA, dtype=np.uint8)
    return [*jobs[:POISONED], *video_jobs(encode_frames([frame] * 24, 140, 112, 12, "h264", 18)),
            *jobs[POISONED + 1 :]]  # fmt: skip


def run(
    model: Path, jobs: list[WindowJob], config: EngineConfig, *, kill_after: float | None = None
) -> tuple[list[WindowJob], list[str]]:
    """Every result, and the reasons of the engine's crashes."""
    crashes: list[str] = []
    before = engine_processes(os.getpid()).keys()

    async def kill_engine() -> None:
        await asyncio.sleep(kill_after or 0)
        for process, title in engine_processes(os.getpid()).items():
            if "EngineCore" in title and process not in before:
                process.send_signal(signal.SIGKILL)

    async def all_of_it() -> list[WindowJob]:
        supervisor = EngineSupervisor(lambda: start_engine(model, Recipe(), config), on_crash=crashes.append)
        async with supervisor:
            killing = asyncio.create_task(kill_engine()) if kill_after is not None else None
            results = await caption_all(supervisor, Recipe(), jobs)
            assert killing is None or killing.done()
            return results

    results = asyncio.run(all_of_it())
    _, alive = psutil.wait_procs(engine_processes(os.getpid()).keys() - before, timeout=5)
    assert not alive
    return results, crashes


def assert_right(results: list[WindowJob], films: list[SampleFile], *, but: int | None = None) -> None:
    for number, (done, film) in enumerate(zip(results, films, strict=True)):
        if number != but:
            assert done.row(STAGE2) is not None
            assert (done.row(STAGE1).caption, done.row(STAGE2).caption) == film.captions[0], done.row(STAGE1).error


def test_a_killed_engine_costs_no_caption(model_folder: Path, jobs: list[WindowJob], films: list[SampleFile]) -> None:
    results, crashes = run(model_folder, jobs, EngineConfig(), kill_after=1.0)
    assert len(crashes) == 1
    assert_right(results, films)


@pytest.mark.parametrize("fault", ["crash", "hang"])
def test_the_one_window_that_kills_or_hangs_the_engine_is_found_and_all_others_are_captioned(
    plugin_path: pytest.MonkeyPatch,
    model_folder: Path,
    poisoned: list[WindowJob],
    films: list[SampleFile],
    fault: str,
) -> None:
    plugin_path.setenv(poison_plugin.FAULT, fault)
    begun = time.monotonic()
    results, crashes = run(model_folder, poisoned, EngineConfig(request_timeout_seconds=25.0))
    assert len(crashes) == 3, f"after {time.monotonic() - begun:.0f} s: {crashes}"
    assert_right(results, films, but=POISONED)
    bad = results[POISONED]
    assert (bad.row(STAGE1).status, bad.row(STAGE1).error_kind) == (Status.FAILED, "poison")
    assert bad.row(STAGE2).error_kind == "stage1_failed"
    assert all(("no output for" in reason) == (fault == "hang") for reason in crashes)
