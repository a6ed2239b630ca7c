"""Killed runs: the sensor ends them, the queue continues, and the schedule requests their shards again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
import psutil
import pytest

from caption_assets.store.heartbeat import list_heartbeats
from caption_assets.store.root import Root
from tests.automation.dead_runs_harness import DeadRunsHarness
from tests.processes import free_port, wait_until

REPOSITORY = Path(__file__).parent.parent
Status = dg.DagsterRunStatus

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


@dataclass
class DagsterProcesses:
    """Dagster commands with a root and an instance of their own."""

    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def root(self) -> Root:
        return Root.open(str(self.folder / "root"))

    def start(self, *arguments: str, **settings: str) -> subprocess.Popen[bytes]:
        """Start a Dagster command in a session of its own."""
        environment = {
            **os.environ,
            "DAGSTER_HOME": str(self.home),
            "CAPTION_ROOT": str(self.folder / "root"),
            "CAPTION_CACHE": str(self.folder / "cache"),
            "CAPTION_LEASE_SECONDS": "5",
            **settings,
        }
        command = [sys.executable, "-W", "ignore", "-m", "dagster", *arguments, "-m", "caption_assets.definitions"]
        with (self.folder / "log").open("ab") as log:
            options = {"cwd": self.home, "env": environment, "stdout": log, "stderr": log, "start_new_session": True}
            self.processes.append(subprocess.Popen(command, **options))  # type: ignore[call-overload]
        return self.processes[-1]

    def kill_all(self) -> None:
        """Kill the commands and all their descendants."""
        for process in self.processes:
            for child in [*children(process), process]:
                child.kill()
            process.wait()

    def instance(self) -> dg.DagsterInstance:
        before = Path.cwd()
        os.chdir(self.home)  # dagster.yaml has paths relative to the working directory
        try:
            return dg.DagsterInstance.from_config(str(self.home))
        finally:
            os.chdir(before)

    def active_run(self, run: psutil.Popen | subprocess.Popen[bytes]) -> str:
        """The id of the only active run, once it has a heartbeat."""
        wait_until(lambda: list_heartbeats(self.root) or run.poll() is not None, 120)
        [run_id] = list_heartbeats(self.root)
        return run_id


def children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """All descendants of a session's first process, including those whose parent exited."""
    return [child for child in psutil.process_iter() if _session(child) == process.pid and child.pid != process.pid]


def _session(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except OSError:
        return None


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[DagsterProcesses]:
    processes = DagsterProcesses(tmp_path)
    (tmp_path / "root").mkdir()
    processes.home.mkdir()
    shutil.copy(REPOSITORY / "dagster.yaml", processes.home)
    yield processes
    processes.kill_all()


@pytest.fixture
def silent_source() -> Iterator[dict[str, str]]:
    """Settings of a source that never responds: a run that lists it takes minutes."""
    with socket.socket() as store:
        store.bind(("127.0.0.1", 0))
        store.listen(100)
        yield {
            "CAPTION_SOURCE": "s3://bucket/shards",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{store.getsockname()[1]}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }


@pytest.fixture
def harness(processes: DagsterProcesses) -> Iterator[DeadRunsHarness]:
    with processes.instance() as instance:
        yield DeadRunsHarness(processes.folder / "root", instance)


MATERIALIZE = ("asset", "materialize", "--select")


@pytest.mark.parametrize("executor", ["in_process", "multiprocess"])
def test_killed_command_line_run_is_ended(
    processes: DagsterProcesses, harness: DeadRunsHarness, silent_source: dict[str, str], executor: str
) -> None:
    process = processes.start(*MATERIALIZE, "shard_index", CAPTION_EXECUTOR=executor, **silent_source)
    run = processes.active_run(process)
    if executor == "multiprocess":
        wait_until(lambda: children(process), 60)
    process.kill()
    process.wait()
    wait_until(lambda: not children(process), 60)
    harness.tick_for(60)
    assert harness.status(run) is Status.FAILURE
    assert f"process {process.pid}" in harness.message(run, dg.DagsterEventType.RUN_FAILURE)


def test_suspended_run_continues_unless_its_heartbeat_expired(
    processes: DagsterProcesses, harness: DeadRunsHarness, silent_source: dict[str, str]
) -> None:
    process = processes.start(*MATERIALIZE, "shard_index", **silent_source)
    run = processes.active_run(process)
    harness.tick()
    process.send_signal(signal.SIGSTOP)
    harness.tick(4)
    process.send_signal(signal.SIGCONT)
    before = list_heartbeats(processes.root)
    wait_until(lambda: list_heartbeats(processes.root) != before, 30)
    harness.tick(4)
    harness.tick(4)
    assert harness.status(run) is Status.STARTED

    process.send_signal(signal.SIGSTOP)
    harness.tick_for(60)
    assert harness.status(run) is Status.FAILURE
    process.send_signal(signal.SIGCONT)
    assert process.wait(60) != 0
    assert harness.status(run) is Status.FAILURE
    assert list_heartbeats(processes.root) == {}


def test_command_line_run_canceled_in_the_ui_stops(
    processes: DagsterProcesses, harness: DeadRunsHarness, silent_source: dict[str, str]
) -> None:
    process = processes.start(*MATERIALIZE, "shard_index", **silent_source)
    run = harness.instance.get_run_by_id(processes.active_run(process))
    assert run is not None
    harness.instance.report_run_canceling(run)
    assert process.wait(60) != 0
    assert harness.status(run.run_id) is Status.CANCELED


@pytest.mark.nightly  # starts three engines, 5 to 9 minutes
def test_schedule_requests_active_shards_again_after_a_power_cut(
    processes: DagsterProcesses, sample_data: Path
) -> None:
    """The first cut interrupts a manifest from the command line, the second one captions from the schedule."""
    shard = processes.folder / "root" / "shards" / "street"
    shard.mkdir(parents=True)
    for clip in ("clip-00.webm", "clip-01.webm"):
        shutil.copy(sample_data / "shards" / "sample-folder" / clip, shard)
    assert processes.start(*MATERIALIZE, "shard_index,model_weights").wait(120) == 0
    process = processes.start(*MATERIALIZE, "clip_manifest", "--partition", "street")
    manifest = processes.active_run(process)
    process.kill()
    process.wait()

    with processes.instance() as instance:

        def status(run: str) -> Status:
            found = instance.get_run_by_id(run)
            assert found is not None
            return found.status

        def runs(asset: str, *statuses: Status) -> list[str]:
            found = instance.get_runs(dg.RunsFilter(statuses=statuses))
            return [run.run_id for run in found if dg.AssetKey(asset) in (run.asset_selection or ())]

        assert status(manifest) is Status.STARTED
        dev = ("dev", "-h", "127.0.0.1", "-p", str(free_port()))
        automation = {"CAPTION_AUTOMATE": "1", "CAPTION_BACKFILL_CRON": "* * * * *"}
        processes.start(*dev, **automation)
        wait_until(lambda: status(manifest) is Status.FAILURE, 300)
        wait_until(lambda: set(runs("stage2_captions", Status.STARTED)) & list_heartbeats(processes.root).keys(), 300)
        [captions] = runs("stage2_captions", Status.STARTED)
        processes.kill_all()

        assert status(captions) is Status.STARTED
        processes.start(*dev, **automation)
        wait_until(lambda: status(captions) is Status.FAILURE, 300)
        wait_until(lambda: runs("stage2_captions", Status.SUCCESS), 400)
