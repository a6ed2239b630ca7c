"""Harness for tests that stop runs. Its shard takes minutes to caption, so that a signal can arrive at any moment."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.execution.plan.state import KnownExecutionState
from dagster._core.execution.retries import RetryMode
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._grpc.types import ExecuteStepArgs
from dagster._utils.hosted_user_process import recon_job_from_origin

from caption_assets.store.checkpoints import checkpoint_folder, read_checkpoints
from caption_assets.store.root import Root
from caption_assets.store.tables import find_captions
from tests.dagster_ui import DagsterUI
from tests.processes import RunningCommand, wait_until
from tests.videos import moving_video

REPOSITORY = Path(__file__).parent.parent
SHARD = "long"
CLIPS = 400
CAPTIONS = ("stage1_captions", "stage2_captions")
STOP_SECONDS = 30.0
"""Maximum time to stop a run, as in the documentation."""
LOCATION = {"repositoryName": "__repository__", "repositoryLocationName": "caption_assets.definitions"}
LAUNCH = """mutation ($params: ExecutionParams!) { launchRun(executionParams: $params) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
TERMINATE = """mutation ($run: String!) { terminateRun(runId: $run) { __typename } }"""
STATUS = """query ($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }"""
EVENTS = """query ($run: ID!) { logsForRun(runId: $run) { ... on EventConnection { events {
    __typename ... on MessageEvent { message stepKey } } } } }"""
FINISHED = {"SUCCESS", "FAILURE", "CANCELED"}


@dataclass(frozen=True)
class StoppingHarness:
    """A root with a long shard, a Dagster instance, and the commands that run on them."""

    folder: Path
    commands: list[RunningCommand] = field(default_factory=list)

    @property
    def root(self) -> Root:
        return Root.open(str(self.folder / "root"))

    def prepare(self, clips: int = CLIPS) -> None:
        """Write the shard and materialize everything that its captions need."""
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

    def start(self, *command: str, **settings: str) -> RunningCommand:
        environment = {
            **os.environ,
            "DAGSTER_HOME": str(self.folder / "home"),
            "CAPTION_ROOT": str(self.folder / "root"),
            "CAPTION_CACHE": str(self.folder / "cache"),
            "CAPTION_CHECKPOINT_ROWS": "1000",
            "CAPTION_CHECKPOINT_SECONDS": "1000",
            "CAPTION_LOG_LEVEL": "debug",  # the tests wait for Dagster's events
            **settings,
        }
        started = RunningCommand([sys.executable, "-W", "ignore", *command], self.folder, environment)
        self.commands.append(started)
        return started

    def materialize(self, *assets: str, partition: str | None = SHARD, **settings: str) -> RunningCommand:
        command = ["-m", "dagster", "asset", "materialize", "-m", "caption_assets.definitions"]
        command += ["--select", ",".join(assets)]
        return self.start(*command, *(["--partition", partition] if partition else []), **settings)

    def start_step(self, asset: str, **settings: str) -> RunningCommand:
        """Start the process that dagster-k8s starts in a step's pod, as part of a new run of an asset."""
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

    def events_of_lost_run(self) -> list[dg.DagsterEventType]:
        """Event types of the last run. The run has no process, so it is marked as failed: it would block the queue."""
        with dg.DagsterInstance.from_config(str(self.folder / "home")) as instance:
            [run] = instance.get_runs(limit=1)
            instance.report_run_failed(run)
            return [entry.dagster_event.event_type for entry in instance.all_logs(run.run_id) if entry.dagster_event]

    def stored_rows(self) -> set[tuple[str, str]]:
        """Table and window of each row in checkpoints and published tables."""
        published = [find_captions(self.root, table, SHARD) for table in CAPTIONS]
        files = [*read_checkpoints(self.root, SHARD), *filter(None, published)]
        return {(file.table, row.window_id) for file in files for row in file.rows}

    def is_leased(self) -> bool:
        """Whether a run holds the shard's lease."""
        folder = checkpoint_folder(SHARD)
        names = sorted(name for name in self.root.names(folder) if name.startswith("lease-"))
        return bool(names) and not json.loads(self.root.read(f"{folder}/{names[-1]}"))["released"]

    def last_status(self) -> dg.DagsterRunStatus:
        """Status of the latest run."""
        with dg.DagsterInstance.from_config(str(self.folder / "home")) as instance:
            [run] = instance.get_runs(limit=1)
            return run.status

    def delete_captions(self) -> None:
        """Delete checkpoints and captions."""
        self.root.remove_folder(checkpoint_folder(SHARD))
        for table in CAPTIONS:
            self.root.remove_folder(f"{table}/shard={SHARD}")

    @contextmanager
    def serve(self, port: int, **settings: str) -> Iterator[DagsterDev]:
        """Run ``dagster dev`` during the block."""
        arguments = ["-h", "127.0.0.1", "-p", str(port), "-m", "caption_assets.definitions"]
        command = self.start("-m", "dagster", "dev", *arguments, **settings)
        server = DagsterDev(f"http://127.0.0.1:{port}", command)
        try:
            wait_until(server.responds, 240, "the UI responds")
            yield server
        finally:
            command.descendants()
            if command.process.poll() is None:
                os.killpg(command.process.pid, signal.SIGTERM)
            try:
                command.process.wait(90)
            finally:
                command.kill()


@dataclass(frozen=True)
class DagsterDev(DagsterUI):
    """A running ``dagster dev``: its UI and its process."""

    command: RunningCommand

    def launch(self, *assets: str, partition: str | None = SHARD) -> str:
        """Launch a run as the Materialize button does; returns its id."""
        selection = [{"path": [asset]} for asset in assets]
        tags = [{"key": "dagster/partition", "value": partition}] if partition else []
        params = {
            "selector": {**LOCATION, "jobName": "__ASSET_JOB", "assetSelection": selection},
            "runConfigData": {},
            "mode": "default",
            "executionMetadata": {"tags": tags},
        }
        launched = self.query(LAUNCH, params=params)["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        return str(launched["run"]["runId"])

    def terminate(self, run: str) -> None:
        """Terminate a run as the Terminate button does."""
        outcome = self.query(TERMINATE, run=run)["terminateRun"]["__typename"]
        assert outcome == "TerminateRunSuccess", outcome

    def status(self, run: str) -> str:
        return str(self.query(STATUS, run=run)["runOrError"]["status"])

    def events(self, run: str) -> list[dict[str, Any]]:
        return list(self.query(EVENTS, run=run)["logsForRun"]["events"])

    def messages(self, run: str) -> str:
        return "\n".join(str(event.get("message")) for event in self.events(run))
