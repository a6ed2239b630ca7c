"""A child command in a process group of its own, which ends with its parent."""

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

STOP_SECONDS = 40.0
"""Maximum wait for the processes that a command started, in seconds. A run takes up to 30 s to stop."""
SAME_SECONDS = 0.5
"""Interval within which two signals count as one, in seconds: ``make`` repeats a SIGTERM that its script received."""
FORWARDED = (signal.SIGINT, signal.SIGTERM)


class Child(subprocess.Popen[str]):
    """The process of a command."""

    was_signaled = False
    """Whether a signal was forwarded to it."""


@contextmanager
def child(
    command: Sequence[str], *, env: Mapping[str, str], cwd: Path | None = None, stdout: int | IO[str] | None = None
) -> Iterator[Child]:
    """Run a command during the block, and wait at its end for the command and all of its descendants.

    The first SIGINT or SIGTERM is forwarded to the command; the second kills its process group. The group is its own
    because a terminal sends Ctrl-C to the script's whole group: the command would receive it twice.

    Args:
        command: program and arguments.
        env: its environment.
        cwd: its working folder.
        stdout: destination of its output and errors; by default the script's own.
    """
    for number in FORWARDED:
        if signal.getsignal(number) is signal.SIG_IGN:  # a shell starts background commands so, and children inherit it
            signal.signal(number, signal.SIG_DFL)
    process = Child(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,  # a background group that reads the terminal is stopped
        stdout=stdout,
        stderr=subprocess.STDOUT if stdout else None,
        text=True,
        errors="replace",
        process_group=0,
    )
    first = 0.0

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if not first:
            first = time.monotonic()
            process.was_signaled = True
            process.send_signal(number)
        elif time.monotonic() - first > SAME_SECONDS:
            _kill(process.pid)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
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


def _members(group: int) -> Iterator[int]:
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(ProcessLookupError, PermissionError):
            if os.getpgid(int(folder.name)) == group:
                yield int(folder.name)


def _is_alive(process: int) -> bool:
    """Whether a process still runs. In a container, a zombie may never be collected, so it does not count."""
    with suppress(OSError):
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in ("Z", "X")
    return False


def _kill(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
