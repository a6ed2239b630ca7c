"""The cluster's Dagster processes on this machine: a code server for each project, and the daemon."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import yaml
from dagster._core.scheduler.instigation import InstigatorTick, TickStatus

from tests.processes import free_port, wait_until

HOST = "127.0.0.1"
SCRIPTS = Path(sys.executable).parent
DAEMON = (sys.executable, "-P", str(Path(__file__).with_name("quick_daemon.py")))
TIMEOUT_SECONDS = 900
"""Timeout of each step; two idle cores need a tenth of it."""
STOP_SECONDS = 60
NONE: Mapping[str, str] = {}
AUTOMATION = {
    "CAPTION_AUTOMATE": "1",
    "CAPTION_SENSOR_INTERVAL_SECONDS": "1",
    "CAPTION_SHARD_QUIET_MINUTES": "0",
    "CAPTION_BACKFILL_CRON": "* * * * *",
}


@dataclass(frozen=True, slots=True)
class Deployment:
    """Running code servers and a daemon over one instance."""

    instance: dg.DagsterInstance
    workspace: Path

    def ticks(self, name: str) -> list[InstigatorTick]:
        """Finished ticks of all sensors or schedules with a name, newest first."""
        states = [state for state in self.instance.all_instigator_state() if state.instigator_name == name]
        ticks = [
            tick
            for state in states
            for tick in self.instance.get_ticks(state.instigator_origin_id, state.selector_id)
            if tick.status is not TickStatus.STARTED
        ]
        return sorted(ticks, key=lambda tick: tick.timestamp, reverse=True)

    def message(self, name: str) -> str:
        """Reason of the last tick for requesting nothing; empty if it requested something or there was no tick."""
        return next((tick.skip_reason or "" for tick in self.ticks(name)), "")

    def query(self, text: str, **variables: object) -> Any:
        """Data of the response to a GraphQL query, without a webserver."""
        done = subprocess.run(
            [SCRIPTS / "dagster-graphql", "-w", self.workspace, "-t", text, "-v", json.dumps(variables)],
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(done.stdout)["data"]


@contextmanager
def deployed(home: Path, projects: Mapping[str, Mapping[str, str]]) -> Iterator[Deployment]:
    """Run a code server for each project, and a daemon.

    Args:
        home: DAGSTER_HOME with a dagster.yaml; gets the workspace file and the logs.
        projects: settings by name of the code location.
    """
    with ExitStack() as stack:
        servers = []
        for name, settings in projects.items():
            port = free_port()
            command = [str(SCRIPTS / "dagster"), "code-server", "start", "-h", HOST, "-p", str(port)]
            command += ["-m", "caption_assets.definitions"]
            stack.enter_context(_process(command, home, name, settings))
            servers.append({"grpc_server": {"host": HOST, "port": port, "location_name": name}})
        for server in servers:
            until(lambda port=server["grpc_server"]["port"]: _listens(port))  # type: ignore[misc]
        workspace = home / "workspace.yaml"
        workspace.write_text(yaml.safe_dump({"load_from": servers}))
        instance = stack.enter_context(dg.DagsterInstance.from_config(str(home)))
        stack.enter_context(_process([*DAEMON, "run", "-w", str(workspace)], home, "daemon"))
        yield Deployment(instance, workspace)


def until(condition: Callable[[], object]) -> None:
    """Wait until a condition is true."""
    wait_until(condition, TIMEOUT_SECONDS, interval=0.5)


@contextmanager
def _process(command: list[str], home: Path, name: str, settings: Mapping[str, str] = NONE) -> Iterator[None]:
    """Run a Dagster process in a group of its own, so that its children are stopped with it."""
    with (home / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=home,
            env={**os.environ, **settings},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            finally:
                if process.returncode is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0
