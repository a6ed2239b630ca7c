"""The commands of the README, in processes of their own: what a user or CI types, and what is left running after it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from caption_assets.captioning.stages import STAGE1, STAGE2
from caption_assets.store.checkpoints import read_checkpoints
from caption_assets.store.root import Root
from caption_assets.store.tables import read_captions
from tests.conftest import Truth
from tests.processes import ENGINE, engine_processes
from tests.videos import moving_video

REPOSITORY = Path(__file__).parent.parent
JOINT = "clip_manifest,stage1_captions,stage2_captions"


class Run:
    """A command under way. Its output goes to a file: a full pipe would stop it."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        self._output = folder / f"{uuid4().hex}.log"
        with self._output.open("w") as output:
            self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    def watch(self) -> Iterator[dict[psutil.Process, str]]:
        """The run's engine processes, again and again until it ends."""
        while self.process.poll() is None:
            yield engine_processes(self.process.pid)
            time.sleep(0.1)


@dataclass(frozen=True, slots=True)
class CommandLine:
    """``dagster asset materialize`` over a root and an instance of its own."""

    folder: Path
    runs: list[Run] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.folder / "root"

    def start(self, selection: str, partition: str | None = None, **settings: str) -> Run:
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
        self.runs.append(Run(command, self.folder, environment))
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
        run.process.kill()  # does nothing to one that has ended


@pytest.fixture
def prepared(command_line: CommandLine) -> CommandLine:
    status, output = command_line.run("shard_index,model_weights")
    assert status == 0, output
    return command_line


@pytest.mark.engine
def test_a_joint_run_captions_a_shard_with_one_engine_and_leaves_none(prepared: CommandLine, truth: Truth) -> None:
    run = prepared.start(JOINT, "sample-folder")
    seen: dict[psutil.Process, str] = {}
    for engines in run.watch():
        seen |= engines
    assert run.process.returncode == 0, run.output
    assert list(seen.values()) == ENGINE, "more than one engine"
    assert [process for process in seen if process.is_running()] == []
    root = Root.open(str(prepared.root))
    for stage, table in enumerate((STAGE1.name, STAGE2.name)):
        said = {
            (row.clip_key, row.window_index): row.caption
            for row in read_captions(root, table, "sample-folder")
            if row.window_index is not None
        }
        assert said == {
            (clip, window): captions[stage]
            for clip, windows in truth["sample-folder"].items()
            for window, captions in enumerate(windows)
        }


@pytest.mark.parametrize(
    "blow", [pytest.param(signal.SIGKILL, marks=pytest.mark.representative), pytest.param(signal.SIGTERM)]
)
@pytest.mark.faults
def test_a_killed_run_takes_its_engine_with_it(prepared: CommandLine, blow: signal.Signals) -> None:
    run = prepared.start(JOINT, "sample-tar")
    engines: dict[psutil.Process, str] = {}
    for engines in run.watch():
        if len(engines) == len(ENGINE):
            break
    assert list(engines.values()) == ENGINE, run.output
    children = psutil.Process(run.process.pid).children(recursive=True)  # the decoders among them
    run.process.send_signal(blow)
    assert run.process.wait(timeout=60) != 0
    _, left = psutil.wait_procs(children, timeout=10)
    assert left == []


@pytest.mark.faults
@pytest.mark.representative
def test_a_run_that_is_told_to_stop_keeps_what_it_has_done(command_line: CommandLine) -> None:
    folder = command_line.root / "shards" / "long"
    folder.mkdir()
    for number in range(100):
        (folder / f"{number}.mp4").write_bytes(moving_video(48, size=(64 + 2 * number, 64)))
    status, output = command_line.run("shard_index,model_weights")
    assert status == 0, output
    never = {"CAPTION_CHECKPOINT_ROWS": "1000", "CAPTION_CHECKPOINT_SECONDS": "1000"}
    run = command_line.start(JOINT, "long", **never)
    for _ in run.watch():
        if "of 100 windows done" in run.output:
            break
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait(timeout=60) != 0
    root = Root.open(str(command_line.root))
    kept = [row.window_id for part in read_checkpoints(root, "long") if part.table == STAGE2.name for row in part.rows]
    assert 0 < len(kept) < 100
    assert "interrupted" in run.output
    assert "Traceback" not in run.output.split("interrupted")[0]

    status, output = command_line.run(JOINT, "long")  # another run, which need not wait: the lease was released
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
        ("clip_manifest", "nowhere", {}, "nowhere"),
    ],
    ids=["model", "root", "source", "partition"],
)
def test_a_mistake_ends_with_one_clear_message(
    command_line: CommandLine, selection: str, partition: str | None, settings: dict[str, str], message: str
) -> None:
    status, output = command_line.run(selection, partition, **settings)
    assert status != 0
    assert message in output


@pytest.mark.engine
def test_a_shard_that_has_gone_ends_with_one_clear_message(prepared: CommandLine) -> None:
    (prepared.root / "shards" / "sample-tar.tar").unlink()
    status, output = prepared.run("clip_manifest", "sample-tar")
    assert status != 0
    assert "shard 'sample-tar' is not in the source" in output
