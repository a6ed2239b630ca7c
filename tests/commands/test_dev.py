"""Tests of ``caption-assets dev`` in a project folder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from tests.cli import run_cli
from tests.processes import wait_until
from tests.scaffold.harness import environment, make


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def session(leader: int) -> list[psutil.Process]:
    """The running processes of a session."""
    found = []
    for process in psutil.process_iter(["status"]):
        if process.info["status"] != psutil.STATUS_ZOMBIE and os.getsid(process.pid) == leader:
            found.append(process)
    return found


@pytest.mark.fast
def test_taken_port_is_one_message() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        message = run_cli("dev", "--port", str(port)) or ""
    assert message.startswith(f"error: port {port} is in use by process {os.getpid()} (")
    assert message.endswith(f"stop it, or choose another port, such as --port {port + 5}")


@pytest.mark.fast
def test_port_of_an_ended_server_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client, server.accept()[0] as accepted:
            accepted.close()  # first, so that its side waits in TIME_WAIT
            client.recv(1)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    assert "DAGSTER_HOME is not set" in (run_cli("dev", "--port", str(port)) or "")


@pytest.mark.faults
@pytest.mark.representative
def test_interrupt_ends_all_processes_without_a_traceback(tmp_path: Path) -> None:
    make(tmp_path)
    port = free_port()
    command = [str(Path(sys.executable).with_name("caption-assets")), "dev", "--port", str(port)]
    variables = environment(tmp_path, CAPTION_LINK_URL="http://127.0.0.1:1")  # no server of galleries
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=variables, stdout=output, stderr=output, start_new_session=True
        )

    def answers() -> bool:
        assert process.poll() is None, (tmp_path / "output").read_text()
        try:
            return httpx.get(f"http://127.0.0.1:{port}/server_info").is_success
        except httpx.TransportError:
            return False

    try:
        wait_until(answers, 120, "the UI answers")
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.wait(60) == 0
        assert session(process.pid) == []
    finally:
        for left in session(process.pid):
            left.kill()
    assert "Traceback" not in (tmp_path / "output").read_text()
    assert {path.name for path in (tmp_path / ".dagster").iterdir()}.isdisjoint({"logs", ".logs_queue"})
