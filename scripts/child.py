"""A command that a script runs, with a process group of its own, and that stops with it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO

import psutil

STOP_SECONDS = 40.0
"""Maximum wait for what a command leaves behind. A run takes up to 30 s to stop."""
SAME_SECONDS = 0.5
"""Two signals within this time count as one: ``make`` hands SIGTERM on to a script that has it already."""


@contextmanager
def child(
    command: Sequence[str], *, env: Mapping[str, str], cwd: Path | None = None, stdout: int | IO[str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run a command while the block runs, and wait for it and for all processes below it.

    The first SIGINT or SIGTERM is handed to the command, the second kills it with all below it. A terminal's Ctrl-C
    reaches the script alone: in the script's own group the command would be signaled twice.

    Args:
        command: program and arguments.
        env: its environment.
        cwd: its working folder.
        stdout: for its output and its errors; the script's own if there is none.
    """
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,  # to read a terminal, a group in the background would be stopped
        stdout=stdout,
        stderr=subprocess.STDOUT if stdout else None,
        text=True,
        errors="replace",
        process_group=0,
    )
    first = 0.0

    def hand_on(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if not first:
            first = time.monotonic()
            process.send_signal(number)
        elif time.monotonic() - first > SAME_SECONDS:
            _kill(process.pid)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield process
        process.wait()
        _wait_for_group(process.pid)
    finally:
        _kill(process.pid)
        process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait_for_group(group: int) -> None:
    deadline = time.monotonic() + STOP_SECONDS
    while any(map(_is_alive, _members(group))) and time.monotonic() < deadline:
        time.sleep(0.1)


def _members(group: int) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == group:
                yield process


def _is_alive(process: psutil.Process) -> bool:
    """Whether a process is more than an entry that a container's first process has not collected."""
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def _kill(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
