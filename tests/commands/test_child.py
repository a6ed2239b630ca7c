"""Tests that stop the child processes of `make demo` and `caption-assets dev`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.processes import is_gone, wait_until

pytestmark = pytest.mark.fast

REPOSITORY = Path(__file__).parent.parent.parent
SCRIPT = """
import os, sys
from caption_assets.commands.child import child
with child([sys.executable, "-c", sys.argv[1]], env=dict(os.environ)) as process:
    pass
print("over", flush=True)
sys.exit(process.returncode)
"""
SERVER = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
try:
    grandchild = subprocess.Popen([sys.executable, "-c", {grandchild!r}])
    time.sleep(600)
except KeyboardInterrupt:
    print("stopped", flush=True)
    sys.exit(3)
"""
EXITS_WITH_ITS_PARENT = """
import os, time
parent = os.getppid()
print(os.getpid(), flush=True)
while os.getppid() == parent:
    time.sleep(0.05)
time.sleep(0.3)
"""
IGNORES_ITS_PARENT = """
import os, time
print(os.getpid(), flush=True)
time.sleep(600)
"""


@pytest.fixture
def script() -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    started = []

    def start(grandchild: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SCRIPT, SERVER.format(grandchild=grandchild)]
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, start_new_session=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_signal_stops_the_command_and_its_descendants(
    script: Callable[[str], subprocess.Popen[str]], send: Callable[[int, int], None], number: signal.Signals
) -> None:
    process = script(EXITS_WITH_ITS_PARENT)
    assert process.stdout is not None
    grandchild = psutil.Process(int(process.stdout.readline()))
    send(process.pid, number)
    assert process.stdout.read() == "stopped\nover\n"
    assert process.wait(20) == 3
    assert is_gone(grandchild)


def test_second_signal_kills_the_command_and_its_descendants(script: Callable[[str], subprocess.Popen[str]]) -> None:
    process = script(IGNORES_ITS_PARENT)
    assert process.stdout is not None
    grandchild = psutil.Process(int(process.stdout.readline()))
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "stopped\n"
    time.sleep(0.7)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) != 0
    wait_until(lambda: is_gone(grandchild), 10, "the grandchild exits")


def test_signal_stops_a_command_that_was_started_in_the_background_of_a_shell() -> None:
    command = [sys.executable, "-c", SCRIPT, SERVER.format(grandchild=EXITS_WITH_ITS_PARENT)]
    background = ["sh", "-c", '"$@" & echo $!; wait', "sh", *command]  # the shell makes it ignore SIGINT
    with subprocess.Popen(background, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        script, grandchild = (psutil.Process(int(shell.stdout.readline())) for _ in range(2))
        script.send_signal(signal.SIGINT)
        assert shell.stdout.read() == "stopped\nover\n"
    assert is_gone(grandchild)
