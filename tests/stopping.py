"""A project whose runs are stopped: its shard takes minutes, so that a signal can come at any moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import dagster as dg
import psutil
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._core.execution.retries import RetryMode
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._grpc.types import ExecuteStepArgs
from dagster._utils.hosted_user_process import recon_job_from_origin

from caption_assets.store.checkpoints import checkpoint_folder, read_checkpoints
from caption_assets.store.root import Root
from caption_assets.store.tables import find_captions
from tests.videos import moving_video

REPOSITORY = Path(__file__).parent.parent
SHARD = "long"
CLIPS = 400
CAPTIONS = ("stage1_captions", "stage2_captions")
STOP_SECONDS = 30.0
"""Within which a run that is stopped has ended, by the README."""
LOCATION = {"repositoryName": "__repository__", "repositoryLocationName": "caption_assets.definitions"}
LAUNCH = """mutation ($params: ExecutionParams!) { launchRun(executionParams: $params) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
TERMINATE = """mutation ($run: String!) { terminateRun(runId: $run) { __typename } }"""
STATUS = """query ($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }"""
EVENTS = """query ($run: ID!) { logsForRun(runId: $run) { ... on EventConnection { events {
    __typename ... on MessageEvent { message stepKey } } } } }"""
OVER = {"SUCCESS", "FAILURE", "CANCELED"}


def wait_until(what: Callable[[], object], seconds: float, goal: str) -> None:
    """Returns when ``what`` is true."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"{goal}: not within {seconds:.0f} s"
        time.sleep(0.05)


class Command:
    """A command under way, in a session of its own like one at a terminal. Its output goes to a file."""

    def __init__(self, command: list[str], folder: Path, environment: Mapping[str, str]) -> None:
        self._output = folder / f"{uuid4().hex}.log"
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        self.seen: set[psutil.Process] = set()

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    def look(self) -> set[psutil.Process]:
        """All processes below it that were there at some look."""
        with suppress(psutil.NoSuchProcess):
            self.seen |= set(psutil.Process(self.process.pid).children(recursive=True))
        return self.seen

    def wait_for(self, word: str, seconds: float = 240) -> None:
        wait_until(lambda: word in self.output or self.process.poll() is not None, seconds, word)
        assert self.process.poll() is None, self.output

    def kill(self) -> None:
        for process in self.look():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.kill()
        self.process.wait()


@dataclass(frozen=True)
class Project:
    """A root with a long shard, an instance, and what runs on them."""

    folder: Path
    commands: list[Command] = field(default_factory=list)

    @property
    def root(self) -> Root:
        return Root.open(str(self.folder / "root"))

    def prepare(self, clips: int = CLIPS) -> None:
        """Lay the shard down and make all that comes before its captions."""
        home, shard = self.folder / "home", self.folder / "root" / "shards" / SHARD
        home.mkdir()
        shard.mkdir(parents=True)
        configuration = (REPOSITORY / "dagster.yaml").read_text()
        (home / "dagster.yaml").write_text(configuration.replace("base_dir: ", f"base_dir: {self.folder}/"))
        data = moving_video(48, size=(128, 96))
        for number in range(clips):
            (shard / f"{number:03}.mp4").write_bytes(data)
        for assets, partition in ((("shard_index", "model_weights"), None), (("clip_manifest",), SHARD)):
            command = self.materialize(*assets, partition=partition)
            assert command.process.wait(240) == 0, command.output

    def start(self, *command: str, **settings: str) -> Command:
        environment = {
            **os.environ,
            "DAGSTER_HOME": str(self.folder / "home"),
            "CAPTION_ROOT": str(self.folder / "root"),
            "CAPTION_CACHE": str(self.folder / "cache"),
            "CAPTION_CHECKPOINT_ROWS": "1000",
            "CAPTION_CHECKPOINT_SECONDS": "1000",
            **settings,
        }
        started = Command([sys.executable, "-W", "ignore", *command], self.folder, environment)
        self.commands.append(started)
        return started

    def materialize(self, *assets: str, partition: str | None = SHARD, **settings: str) -> Command:
        command = ["-m", "dagster", "asset", "materialize", "-m", "caption_assets.definitions"]
        command += ["--select", ",".join(assets)]
        return self.start(*command, *(["--partition", partition] if partition else []), **settings)

    def start_step(self, asset: str, **settings: str) -> Command:
        """The process that an executor with a pod for each step starts in it, within a run of that asset."""
        origin = RepositoryPythonOrigin(
            executable_path=sys.executable,
            code_pointer=ModuleCodePointer("caption_assets.definitions", "defs", working_directory=str(self.folder)),
            entry_point=[sys.executable, "-W", "ignore", "-m", "dagster"],
            container_image=None,
            container_context=None,
        )
        job = JobPythonOrigin(job_name="__ASSET_JOB", repository_origin=origin)
        with dg.DagsterInstance.from_config(str(self.folder / "home")) as instance:
            selection = {dg.AssetKey(asset)}
            run = instance.create_run_for_job(
                recon_job_from_origin(job).get_subset(asset_selection=selection).get_definition(),
                status=dg.DagsterRunStatus.STARTED,
                asset_selection=frozenset(selection),
                job_code_origin=job,
            )
            arguments = ExecuteStepArgs(
                job_origin=job,
                run_id=run.run_id,
                step_keys_to_execute=[asset],
                instance_ref=instance.get_ref(),
                retry_mode=RetryMode.DEFERRED,
                known_state=KnownExecutionState(),
                should_verify_step=True,
            )
        return self.start(*arguments.get_command_args()[3:], **settings)

    def events_of_abandoned_run(self) -> list[dg.DagsterEventType]:
        """The kinds of the last run's events. It has no process any more, and is ended: it would hold up the queue."""
        with dg.DagsterInstance.from_config(str(self.folder / "home")) as instance:
            [run] = instance.get_runs(limit=1)
            instance.report_run_failed(run)
            return [entry.dagster_event.event_type for entry in instance.all_logs(run.run_id) if entry.dagster_event]

    def kept(self) -> set[tuple[str, str]]:
        """The rows in checkpoints and in published tables."""
        published = [find_captions(self.root, table, SHARD) for table in CAPTIONS]
        files = [*read_checkpoints(self.root, SHARD), *filter(None, published)]
        return {(file.table, row.window_id) for file in files for row in file.rows}

    def is_leased(self) -> bool:
        """Whether a run that starts now would be refused the shard."""
        folder = checkpoint_folder(SHARD)
        names = sorted(name for name in self.root.names(folder) if name.startswith("lease-"))
        return bool(names) and not json.loads(self.root.read(f"{folder}/{names[-1]}"))["released"]

    def last_run(self) -> dg.DagsterRunStatus:
        """What Dagster has of the run that was launched last."""
        with dg.DagsterInstance.from_config(str(self.folder / "home")) as instance:
            [run] = instance.get_runs(limit=1)
            return run.status

    def forget(self) -> None:
        """Let the next run begin from nothing."""
        self.root.remove_folder(checkpoint_folder(SHARD))
        for table in CAPTIONS:
            self.root.remove_folder(f"{table}/shard={SHARD}")

    @contextmanager
    def serve(self, port: int, **settings: str) -> Iterator[Site]:
        """``dagster dev`` while the block runs."""
        arguments = ["-h", "127.0.0.1", "-p", str(port), "-m", "caption_assets.definitions"]
        command = self.start("-m", "dagster", "dev", *arguments, **settings)
        site = Site(f"http://127.0.0.1:{port}", command)
        try:
            wait_until(site.answers, 240, "the UI answers")
            yield site
        finally:
            command.look()
            if command.process.poll() is None:
                os.killpg(command.process.pid, signal.SIGTERM)
            try:
                command.process.wait(90)
            finally:
                command.kill()


@dataclass(frozen=True)
class Site:
    """The UI's GraphQL."""

    ui: str
    command: Command

    def ask(self, query: str, **variables: object) -> Any:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.ui}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["data"]

    def answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.ui}/server_info", timeout=5)
        except OSError:
            return False
        return True

    def launch(self, *assets: str, partition: str | None = SHARD) -> str:
        """Launch a run, as the button Materialize does; returns its id."""
        selection = [{"path": [asset]} for asset in assets]
        tags = [{"key": "dagster/partition", "value": partition}] if partition else []
        params = {
            "selector": {**LOCATION, "jobName": "__ASSET_JOB", "assetSelection": selection},
            "runConfigData": {},
            "mode": "default",
            "executionMetadata": {"tags": tags},
        }
        launched = self.ask(LAUNCH, params=params)["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        return str(launched["run"]["runId"])

    def terminate(self, run: str) -> None:
        """The button Terminate."""
        answer = self.ask(TERMINATE, run=run)["terminateRun"]["__typename"]
        assert answer == "TerminateRunSuccess", answer

    def status(self, run: str) -> str:
        return str(self.ask(STATUS, run=run)["runOrError"]["status"])

    def events(self, run: str) -> list[dict[str, Any]]:
        return list(self.ask(EVENTS, run=run)["logsForRun"]["events"])

    def log(self, run: str) -> str:
        return "\n".join(str(event.get("message")) for event in self.events(run))
