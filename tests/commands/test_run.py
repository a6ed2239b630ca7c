"""Tests of `caption-assets run` and `caption-assets export` in a process, as a user types them."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from caption_assets.commands.launch import FinishedRun
from caption_assets.commands.run import time_left
from caption_assets.commands.summary import Summary
from tests.processes import RunningCommand

REPOSITORY = Path(__file__).parent.parent.parent
READY = "the engine is ready"


@dataclass(frozen=True, slots=True)
class CommandLine:
    """``caption-assets`` with a root and a Dagster instance of its own."""

    folder: Path
    runs: list[RunningCommand] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.folder / "root"

    def start(self, *arguments: str, **settings: str) -> RunningCommand:
        environment = {
            **os.environ,
            "DAGSTER_HOME": str(self.folder / "home"),
            "CAPTION_ROOT": str(self.root),
            "CAPTION_CACHE": str(self.folder / "cache"),
            "CAPTION_RECIPE": "general",
            **settings,
        }
        command = [sys.executable, "-c", "from caption_assets.cli import main; main()", *arguments]
        self.runs.append(RunningCommand(command, self.folder, environment))
        return self.runs[-1]

    def run(self, *arguments: str, **settings: str) -> tuple[int, str]:
        """Exit status and output."""
        run = self.start(*arguments, **settings)
        return run.process.wait(timeout=240), run.output


@pytest.fixture
def command_line(tmp_path: Path, sample_data: Path) -> Iterator[CommandLine]:
    """A source with the shards ``a``, ``b`` (with a bad clip) and ``broken``."""
    (tmp_path / "home").mkdir()
    shutil.copy(REPOSITORY / "dagster.yaml", tmp_path / "home")
    clips = sample_data / "shards" / "sample-folder"
    for shard, name in (("a", "clip-00.webm"), ("b", "clip-01.webm"), ("b", "clip-02.webm")):
        (tmp_path / "root" / "shards" / shard).mkdir(parents=True, exist_ok=True)
        shutil.copy(clips / name, tmp_path / "root" / "shards" / shard)
    for shard in ("b", "broken"):
        (tmp_path / "root" / "shards" / shard).mkdir(exist_ok=True)
        (tmp_path / "root" / "shards" / shard / "film.mp4").write_bytes(b"no film")
    command_line = CommandLine(tmp_path)
    yield command_line
    for run in command_line.runs:
        run.kill()


@pytest.mark.engine
def test_run_captions_all_shards_with_one_engine_and_names_the_failed_one(command_line: CommandLine) -> None:
    limit = {"CAPTION_MAX_UNREADABLE_FRACTION": "0.5"}
    status, output = command_line.run("run", "--all", **limit)
    lines = output.splitlines()
    assert (status, output.count(READY)) == (1, 1), output
    assert " of 4 in all" in output
    assert [line.split()[0] for line in lines[-6:]] == ["failed:", "captions", "tables", "gallery", "warnings", "next"]
    assert lines[-6].startswith("failed: broken: 1 of 1 clips are unreadable")
    assert "2 of 3 shards captioned, 1 failed; 3 windows captioned (0 reused), 1 failed" in lines[-5]
    assert lines[-1].endswith("caption-assets run --failed")
    assert "Traceback" not in output

    status, output = command_line.run("run", "a", "b", **limit)
    assert (status, READY in output) == (0, False), output
    assert "2 of 2 shards captioned, 0 failed; 3 windows captioned (3 reused), 1 failed" in output

    status, output = command_line.run("run", "brokn")
    assert (status, output) == (1, "error: unknown shard 'brokn': did you mean broken? CAPTION_SOURCE has 3 shards\n")

    status, output = command_line.run("export", "--all", "--format", "jsonl")
    assert status == 0, output
    exported, dataset, merged = output.splitlines()[-3:]
    assert exported == "exported  2 of 2 shards, 3 windows"
    assert dataset.split()[0] == "dataset"
    assert merged.endswith("dataset.jsonl: 3 samples of 2 shards")
    assert len(list((command_line.root / "captioned_dataset" / "data").rglob("*.jsonl"))) == 2


@pytest.mark.engine
def test_source_without_shards_is_an_error(command_line: CommandLine) -> None:
    (command_line.root / "empty").mkdir()
    status, output = command_line.run("run", CAPTION_SOURCE=str(command_line.root / "empty"))
    assert status == 1
    assert output.splitlines()[-1].startswith("error: no shards in CAPTION_SOURCE=")


@pytest.mark.engine
def test_registration_that_fails_is_an_error_beside_refused_shards(command_line: CommandLine) -> None:
    (command_line.root / "odd" / "sp ace").mkdir(parents=True)
    source = {"CAPTION_SOURCE": str(command_line.root / "odd")}
    status, output = command_line.run("run", CAPTION_ROOT="/proc/none", **source)
    assert status == 1
    assert output.splitlines()[-1].startswith("error: CAPTION_ROOT is '/proc/none', which is not writable")

    status, output = command_line.run("run", **source)
    assert status == 1
    assert output.splitlines()[-2].startswith("failed: sp ace: its name is not a valid partition key")
    assert output.splitlines()[-1].startswith("nothing to do")


@pytest.mark.faults
def test_same_command_resumes_after_ctrl_c(command_line: CommandLine) -> None:
    settings = {"CAPTION_MAX_UNREADABLE_FRACTION": "0.5", "CAPTION_SHARDS_PER_RUN": "1"}
    run = command_line.start("run", **settings)
    run.wait_for_output("run 2 of 2")
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(timeout=60) == 130, run.output
    assert run.output.splitlines()[-1].endswith("the same command resumes: caption-assets run")
    assert "1 of 3 shards captioned, 1 failed, 1 not reached" in run.output

    status, output = command_line.run("run", **settings)
    assert (status, output.count(READY)) == (1, 1), output
    assert "1 of 2 shards captioned, 1 failed" in output


@pytest.mark.fast
def test_summary_names_each_reason_once() -> None:
    summary = Summary(list("abcdefgh"))
    summary.failures = {**dict.fromkeys("abcdef", "disk full"), "g": "no clips"}
    summary.windows = {"h": (12, 1, 5)}
    summary.warnings = ["slow", "slow", "odd", "other"]
    assert list(summary.failed_shards()) == ["failed: a, b, c, d, e and 1 more: disk full", "failed: g: no clips"]
    assert summary.counts(61.2) == (
        "1 of 8 shards captioned, 7 failed; 12 windows captioned (5 reused), 1 failed; 0:01:01"
    )
    assert summary.describe_warnings() == "4: slow; odd; …"


@pytest.mark.fast
def test_summary_counts_shards_that_were_not_reached() -> None:
    summary = Summary(list("abc"), unchanged=["a"])
    assert summary.counts(0).startswith("1 of 3 shards captioned, 0 failed, 2 not reached; 0 windows captioned")
    summary.add(FinishedRun("id", True, []), ["b"])
    assert (summary.not_reached, summary.describe_warnings()) == (2, "none")
    assert not summary.is_complete


@pytest.mark.fast
def test_summary_counts_refused_shards_apart() -> None:
    summary = Summary(list("ab"))
    summary.failures = {"b": "no clips", "c,d": "invalid name"}
    summary.windows = {"a": (1, 0, 0)}
    assert summary.counts(0).startswith("1 of 2 shards captioned, 1 failed, 1 not registered; 1 windows")
    assert not summary.is_complete


@pytest.mark.fast
def test_summary_is_complete_if_all_shards_are_captioned_or_unchanged() -> None:
    assert Summary(list("ab"), unchanged=["a"], windows={"b": (1, 0, 0)}).is_complete
    assert not Summary(failures={"c,d": "invalid name"}).is_complete


@pytest.mark.fast
def test_time_left_is_shown_only_in_between() -> None:
    assert [time_left(30, done, 4) for done in (0, 1, 4)] == ["", ", 0:01:30 left", ""]
