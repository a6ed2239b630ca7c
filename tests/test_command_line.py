"""Tests of `dagster asset materialize` in a process: its results, its messages, and the processes that it leaves."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from caption_assets.store.checkpoints import read_checkpoints
from caption_assets.store.root import Root
from caption_assets.store.tables import read_captions
from tests.conftest import Truth
from tests.processes import ENGINE, RunningCommand, engine_processes, is_gone, wait_until
from tests.stages import STAGE1, STAGE2
from tests.videos import moving_video

REPOSITORY = Path(__file__).parent.parent
CHAIN = "clip_manifest,stage1_captions,stage2_captions"


@dataclass(frozen=True, slots=True)
class CommandLine:
    """``dagster asset materialize`` with a root and a Dagster instance of its own."""

    folder: Path
    runs: list[RunningCommand] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.folder / "root"

    def start(self, selection: str, partition: str | None = None, **settings: str) -> RunningCommand:
        command = [sys.executable, "-W", "ignore", "-m", "dagster", "asset", "materialize"]
        command += ["-m", "caption_assets.definitions", "--select", selection]
        command += ["--partition", partition] if partition else []
        environment = {
            **os.environ,
            "DAGSTER_HOME": str(self.folder / "home"),
            "CAPTION_ROOT": str(self.root),
            "CAPTION_CACHE": str(self.folder / "cache"),
            **settings,
        }
        self.runs.append(RunningCommand(command, self.folder, environment))
        return self.runs[-1]

    def run(self, selection: str, partition: str | None = None, **settings: str) -> tuple[int, str]:
        """Exit status and output."""
        run = self.start(selection, partition, **settings)
        return run.process.wait(timeout=240), run.output


@pytest.fixture
def command_line(tmp_path: Path, sample_data: Path) -> Iterator[CommandLine]:
    (tmp_path / "home").mkdir()
    shutil.copy(REPOSITORY / "dagster.yaml", tmp_path / "home")
    shutil.copytree(sample_data / "shards", tmp_path / "root" / "shards")
    command_line = CommandLine(tmp_path)
    yield command_line
    for run in command_line.runs:
        run.kill()


@pytest.fixture
def prepared(command_line: CommandLine) -> CommandLine:
    """A command line with registered shards and mirrored weights."""
    status, output = command_line.run("shard_index,model_weights")
    assert status == 0, output
    assert len(log_lines(output)) <= 4
    return command_line


def log_lines(output: str) -> list[str]:
    """The messages in the output of a run, which has no other lines."""
    lines = output.splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d \S", line) for line in lines), output
    return [line[9:] for line in lines]


@pytest.mark.engine
def test_run_of_both_stages_starts_one_engine_and_leaves_none(prepared: CommandLine, truth: Truth) -> None:
    run = prepared.start(CHAIN, "sample-folder")
    seen: dict[psutil.Process, str] = {}
    while run.process.poll() is None:
        seen |= engine_processes(run.process.pid)
        time.sleep(0.1)
    assert run.process.returncode == 0, run.output
    messages = log_lines(run.output)
    assert messages[0].startswith("sample-folder: 12 clips, 12 windows; 1 unreadable")
    assert messages[-1].startswith("sample-folder: 12 of 13 rows captioned; 1 failed: 1 ")
    assert len(messages) <= 11  # with those of `prepared`, at most 15 for the chain
    assert list(seen.values()) == ENGINE
    assert all(map(is_gone, seen))
    root = Root.open(str(prepared.root))
    for table in (STAGE1.name, STAGE2.name):
        stored = {
            (row.clip_key, row.window_index): row.caption
            for row in read_captions(root, table, "sample-folder")
            if row.window_index is not None
        }
        assert stored == {
            (clip, window): answers[table]
            for clip, windows in truth["sample-folder"].items()
            for window, answers in enumerate(windows)
        }


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGKILL, marks=pytest.mark.representative), pytest.param(signal.SIGTERM)]
)
@pytest.mark.faults
def test_killed_run_leaves_no_process(prepared: CommandLine, number: signal.Signals) -> None:
    run = prepared.start(CHAIN, "sample-tar")
    wait_until(lambda: run.process.poll() is not None or engine_processes(run.process.pid), 240, "the engine starts")
    assert list(engine_processes(run.process.pid).values()) == ENGINE, run.output
    descendants = psutil.Process(run.process.pid).children(recursive=True)  # decode workers included
    run.process.send_signal(number)
    assert run.process.wait(timeout=60) != 0
    _, left = psutil.wait_procs(descendants, timeout=10)
    assert left == []


@pytest.mark.faults
@pytest.mark.representative
def test_terminated_run_stores_its_finished_captions(command_line: CommandLine) -> None:
    folder = command_line.root / "shards" / "long"
    folder.mkdir()
    for number in range(100):
        (folder / f"{number}.mp4").write_bytes(moving_video(48, size=(64 + 2 * number, 64)))
    status, output = command_line.run("shard_index,model_weights")
    assert status == 0, output
    no_checkpoints = {"CAPTION_CHECKPOINT_ROWS": "1000", "CAPTION_CHECKPOINT_SECONDS": "1000"}
    run = command_line.start(CHAIN, "long", **no_checkpoints)
    run.wait_for_output("of 100 windows done")
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait(timeout=60) != 0
    root = Root.open(str(command_line.root))
    parts = [part for part in read_checkpoints(root, "long") if part.table == STAGE2.name]
    assert 0 < sum(len(part.rows) for part in parts) < 100
    assert "error: stopped by SIGTERM; finished rows are kept" in run.output
    assert "Traceback" not in run.output

    status, output = command_line.run(CHAIN, "long")  # need not wait: the stopped run released its lease
    assert status == 0, output
    assert len(read_captions(root, STAGE2.name, "long")) == 100
    assert list(read_checkpoints(root, "long")) == []


@pytest.mark.engine
@pytest.mark.parametrize(
    ("selection", "partition", "settings", "message"),
    [
        ("shard_index", None, {"CAPTION_MODEL": "gpt"}, "CAPTION_MODEL='gpt': unknown model 'gpt': choose one of"),
        ("model_weights", None, {"CAPTION_ROOT": "/proc/nowhere"}, "CAPTION_ROOT is '/proc/nowhere'"),
        ("shard_index", None, {"CAPTION_SOURCE": "nowhere"}, "the source 'nowhere' does not exist"),
        ("clip_manifest", "nowhere", {}, "Error: Unknown shard 'nowhere'; no shard is registered"),
    ],
    ids=["model", "root", "source", "partition"],
)
def test_invalid_setting_or_partition_is_named_in_the_output(
    command_line: CommandLine, selection: str, partition: str | None, settings: dict[str, str], message: str
) -> None:
    status, output = command_line.run(selection, partition, **settings)
    assert status != 0
    assert output.count(message) == 1
    assert "Traceback" not in output


@pytest.mark.engine
def test_deleted_shard_is_named_in_the_output(prepared: CommandLine) -> None:
    (prepared.root / "shards" / "sample-tar.tar").unlink()
    status, output = prepared.run("clip_manifest", "sample-tar")
    assert status != 0
    assert output.count("shard 'sample-tar' is not in the source") == 1
    assert "Traceback" not in output
