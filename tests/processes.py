"""Processes under test: commands that run in the background, vLLM's processes, waiting."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import psutil

ENGINE = ["VLLM::EngineCore"]
"""Process titles of one engine of the sample model."""


class RunningCommand:
    """A command in a session of its own, as in a terminal. Its output goes to a file: a full pipe would block it."""

    def __init__(self, command: list[str], folder: Path, environment: Mapping[str, str]) -> None:
        self._log = folder / f"{uuid4().hex}.log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self._descendants: set[psutil.Process] = set()

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def descendants(self) -> set[psutil.Process]:
        """All descendants that this call or an earlier one found; some may have exited."""
        with suppress(psutil.NoSuchProcess):
            self._descendants |= set(psutil.Process(self.process.pid).children(recursive=True))
        return self._descendants

    def wait_for_output(self, text: str, seconds: float = 240) -> None:
        """Wait until the output contains a text, while the command runs."""
        wait_until(lambda: text in self.output or self.process.poll() is not None, seconds, text)
        assert self.process.poll() is None, self.output

    def kill(self) -> None:
        """Kill the command and its descendants."""
        for process in self.descendants():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.kill()
        self.process.wait()


def engine_processes(run: int) -> dict[psutil.Process, str]:
    """Engine processes among the descendants of the process ``run``, with their titles."""
    with suppress(psutil.NoSuchProcess):
        titles = {child: _title(child) for child in psutil.Process(run).children(recursive=True)}
        return {child: title for child, title in titles.items() if title.startswith("VLLM::")}
    return {}


def is_gone(process: psutil.Process) -> bool:
    """Whether a process has exited; a container's first process may never reap it."""
    with suppress(psutil.NoSuchProcess):
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True


def wait_until(
    condition: Callable[[], object], seconds: float, goal: str = "the condition", *, interval: float = 0.05
) -> None:
    """Wait until a condition is true.

    Args:
        condition: evaluated repeatedly.
        seconds: timeout, after which the test fails.
        goal: the condition in words, for the failure's message.
        interval: time between evaluations, in seconds.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{goal}: not within {seconds:.0f} s"
        time.sleep(interval)


def free_port() -> int:
    """A TCP port of loopback that no process uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _title(process: psutil.Process) -> str:
    with suppress(psutil.Error):  # it may have exited meanwhile
        return " ".join(process.cmdline()).strip()
    return ""
