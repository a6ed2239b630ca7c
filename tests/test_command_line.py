"""The commands of the README, in processes of their own: what a user or CI types, and what is left running after it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from caption_assets.store.root import Root
from caption_assets.store.tables import Table, read_captions
from tests.conftest import Truth

REPOSITORY = Path(__file__).parent.parent
JOINT = "clip_manifest,stage1_captions,stage2_captions"


@dataclass(frozen=True, slots=True)
class CommandLine:
    """``dagster asset materialize`` over a root and an instance of its own."""

    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "root"

    def start(self, selection: str, partition: str | None = None, **settings: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "ignore", "-m", "dagster", "asset", "materialize"]
        command += ["-m", "caption_assets.definitions", "--select", selection]
        command += ["--partition", partition] if partition else []
        plain = {name: value for name, value in os.environ.items() if not name.startswith("CAPTION_")}
        environment = {
            **plain,
            "DAGSTER_HOME": str(self.folder / "home"),
            "CAPTION_ROOT": str(self.root),
            "CAPTION_CACHE": str(self.folder / "cache"),
            **settings,
        }
        return subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self, selection: str, partition: str | None = None, **settings: str) -> tuple[int, str]:
        """Exit status and output."""
        process = self.start(selection, partition, **settings)
        output, _ = process.communicate(timeout=240)
        return process.returncode, output


@pytest.fixture
def command_line(tmp_path: Path, sample_data: Path) -> CommandLine:
    (tmp_path / "home").mkdir()
    shutil.copy(REPOSITORY / "dagster.yaml", tmp_path / "home")
    shutil.copytree(sample_data / "shards", tmp_path / "root" / "shards")
    return CommandLine(tmp_path)


@pytest.fixture
def prepared(command_line: CommandLine) -> CommandLine:
    status, output = command_line.run("shard_index,model_weights")
    assert status == 0, output
    return command_line


def engine_processes(of: int) -> set[int]:
    """Process ids of the vLLM processes started by the run ``of``, children's children included."""
    try:
        return {child.pid for child in psutil.Process(of).children(recursive=True) if "VLLM" in name_of(child)}
    except psutil.NoSuchProcess:
        return set()


def name_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) or process.name()
    except psutil.Error:
        return ""


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE}


def watch(process: subprocess.Popen[str]) -> Iterator[set[int]]:
    while process.poll() is None:
        yield engine_processes(process.pid)
        time.sleep(0.2)


@pytest.mark.engine
def test_a_joint_run_captions_a_shard_with_one_engine_and_leaves_none(prepared: CommandLine, truth: Truth) -> None:
    process = prepared.start(JOINT, "sample-folder")
    cores: set[int] = set()
    seen: set[int] = set()
    for engines in watch(process):
        seen |= engines
        cores |= {pid for pid in engines if "EngineCore" in name_of(psutil.Process(pid))}
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert len(cores) == 1
    assert alive(seen) == set()
    root = Root.open(str(prepared.root))
    for stage, table in enumerate((Table.STAGE1, Table.STAGE2)):
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


@pytest.mark.faults
@pytest.mark.representative
def test_a_killed_run_takes_its_engine_with_it(prepared: CommandLine) -> None:
    process = prepared.start(JOINT, "sample-tar")
    engines: set[int] = set()
    for engines in watch(process):
        if len(engines) >= 2 and any("Worker" in name_of(psutil.Process(pid)) for pid in engines):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert engines, process.communicate()[0]
    for _ in range(50):
        if not alive(engines):
            break
        time.sleep(0.1)
    assert alive(engines) == set()


@pytest.mark.engine
@pytest.mark.parametrize(
    ("selection", "partition", "settings", "message"),
    [
        ("shard_index", None, {"CAPTION_MODEL": "gpt"}, "CAPTION_MODEL='gpt': there is no model 'gpt': choose one of"),
        ("model_weights", None, {"CAPTION_ROOT": "/proc/nowhere"}, "CAPTION_ROOT is '/proc/nowhere'"),
        ("shard_index", None, {"CAPTION_SOURCE": "nowhere"}, "the source 'nowhere' does not exist"),
        ("clip_manifest", "unregistered", {}, "unregistered"),
    ],
    ids=["model", "root", "source", "partition"],
)
def test_a_mistake_ends_with_one_clear_message(
    command_line: CommandLine, selection: str, partition: str | None, settings: dict[str, str], message: str
) -> None:
    status, output = command_line.run(selection, partition, **settings)
    assert status != 0
    assert message in output
    print(json.dumps(output))


@pytest.mark.engine
def test_a_shard_that_has_gone_ends_with_one_clear_message(prepared: CommandLine) -> None:
    (prepared.root / "shards" / "sample-tar.tar").unlink()
    status, output = prepared.run("clip_manifest", "sample-tar")
    assert status != 0
    assert "shard 'sample-tar' is not in the source" in output
