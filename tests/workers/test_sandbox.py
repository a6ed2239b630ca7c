from __future__ import annotations

import asyncio
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random
from threading import Event

import numpy as np
import psutil
import pytest

from caption_assets.errors import UnreadableClip
from caption_assets.workers.sandbox import Sandbox, SandboxLimits
from caption_assets.workers.shared_memory import Buffer, BufferHandle
from caption_assets.workers.worker import WorkerCrashed
from tests.processes import wait_until
from tests.videos import counting_video


def spin() -> None:
    while True:
        pass


def sleep_for_an_hour() -> None:
    time.sleep(3600)


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def exhaust_memory() -> int:
    return len(np.ones(3 << 30, np.uint8))


def refuse() -> None:
    raise UnreadableClip("damaged", "the file is damaged")


def crash_soon() -> int:
    threading.Timer(0.05, crash).start()
    return os.getpid()


def truncate_reply() -> None:
    """Send the first bytes of a reply that is announced as longer, and crash."""
    os.write(int(sys.argv[1]), struct.pack("!i", 1 << 20) + b"part")  # the worker's end of the pipe
    crash()


def terminate_the_first_time(marker: Path) -> str:
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    return "done"


class OddError(Exception):
    """An error that can be pickled but not unpickled."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(one + other)


def fail_oddly() -> None:
    raise OddError("the file is ", "odd")


def invert(handle: BufferHandle) -> int:
    with handle.open() as file:
        array = 255 - np.frombuffer(file.read(), np.uint8)
    handle.write(array)
    return int(array.sum())


def fill_when_allowed(handle: BufferHandle, ready: Path, allowed: Path) -> None:
    ready.touch()
    while not allowed.exists():
        time.sleep(0.01)
    handle.write(np.ones(1000, np.uint8))


def processes() -> set[psutil.Process]:
    """The running children of this process."""
    return set(psutil.Process().children())


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(SandboxLimits(seconds=2.0, memory_gb=1.0), workers=2) as sandbox:
        yield sandbox


@pytest.mark.parametrize(
    ("job", "kind"),
    [
        (spin, "too_slow"),
        (sleep_for_an_hour, "too_slow"),
        (crash, "decoder_died"),
        (truncate_reply, "decoder_died"),
        (exhaust_memory, "too_large"),
        (refuse, "damaged"),
    ],
)
def test_a_failing_job_fails_alone(sandbox: Sandbox, job: Callable[[], object], kind: str) -> None:
    bad = sandbox.submit(job)
    good = [sandbox.submit(abs, -number) for number in range(20)]
    with pytest.raises(UnreadableClip) as error:
        sandbox.result(bad)
    assert error.value.kind == kind
    assert [sandbox.result(job) for job in good] == list(range(20))


@pytest.mark.parametrize("last_job", [os.getpid, crash_soon])
def test_an_idle_worker_that_crashes_is_replaced(last_job: Callable[[], int]) -> None:
    with Sandbox(SandboxLimits(seconds=10.0), workers=1) as sandbox:
        worker = psutil.Process(sandbox.result(sandbox.submit(last_job)))
        if last_job is os.getpid:
            worker.kill()
        psutil.wait_procs([worker], timeout=10)
        assert [sandbox.result(sandbox.submit(abs, -number)) for number in range(3)] == [0, 1, 2]


def test_a_job_given_to_a_killed_worker_is_retried_in_another() -> None:
    with Sandbox(SandboxLimits(seconds=10.0), workers=1) as sandbox:
        for _ in range(5):
            os.kill(sandbox.result(sandbox.submit(os.getpid)), signal.SIGKILL)
            assert sandbox.result(sandbox.submit(abs, -1)) == 1


def test_an_error_that_cannot_be_unpickled_is_raised_as_its_message(sandbox: Sandbox) -> None:
    with pytest.raises(RuntimeError, match="OddError: the file is odd"):
        sandbox.result(sandbox.submit(fail_oddly))
    assert sandbox.result(sandbox.submit(abs, -1)) == 1


def test_workers_killed_at_random_fail_at_most_one_job_each() -> None:
    kills, random, done = 0, Random(0), Event()
    others = processes()

    def kill() -> None:
        nonlocal kills
        while not done.wait(0.3):
            if workers := list(processes() - others):
                with suppress(psutil.NoSuchProcess):
                    random.choice(workers).kill()
                kills += 1

    with Sandbox(SandboxLimits(seconds=20.0), workers=2) as sandbox:
        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        jobs = [sandbox.submit(time.sleep, 0.01) for _ in range(300)]
        errors = [error for job in jobs if (error := job.exception())]
        done.set()
        killer.join()
    assert 0 < kills >= len(errors)
    assert all(isinstance(error, WorkerCrashed) for error in errors)


def test_started_workers_run_the_first_jobs() -> None:
    before = processes()
    with Sandbox(SandboxLimits(seconds=10.0), workers=2) as sandbox:
        sandbox.start(os.getpid)
        while len(started := {process.pid for process in processes() - before}) < 2:
            time.sleep(0.01)
        assert {sandbox.result(sandbox.submit(os.getpid)) for _ in range(8)} <= started


def test_closing_a_sandbox_cancels_waiting_jobs_and_kills_running_ones() -> None:
    with Sandbox(workers=1) as sandbox:
        sandbox.result(sandbox.submit(abs, -1))
        running, waiting = sandbox.submit(sleep_for_an_hour), sandbox.submit(abs, -1)
        while not running.running():
            time.sleep(0.01)
    assert waiting.cancelled()
    with pytest.raises(UnreadableClip, match="the clip crashed the worker process"):
        sandbox.result(running)


def test_a_job_can_be_awaited(sandbox: Sandbox) -> None:
    async def both() -> int:
        with pytest.raises(UnreadableClip, match="the clip crashed the worker process"):
            await sandbox.run(crash)
        return await sandbox.run(abs, -3)

    assert asyncio.run(both()) == 3


def test_a_buffer_is_written_by_a_worker_and_read_without_a_copy(sandbox: Sandbox) -> None:
    buffer = Buffer(1000)
    pixels = np.frombuffer(buffer.memory, np.uint8)
    assert sandbox.result(sandbox.submit(invert, buffer.handle)) == 255 * 1000
    assert pixels.min() == 255
    del buffer
    assert pixels.max() == 255  # the array keeps the memory alive


def test_a_deleted_buffer_frees_its_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        Buffer(1 << 20)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_canceled_job_never_writes_to_a_file_that_was_opened_later(sandbox: Sandbox, tmp_path: Path) -> None:
    ready, allowed = tmp_path / "ready", tmp_path / "allowed"

    async def cancel_a_running_job() -> None:
        buffer = Buffer(1000)
        running = asyncio.create_task(sandbox.run(fill_when_allowed, buffer.handle, ready, allowed))
        while not ready.exists():
            await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.wait([running])

    asyncio.run(cancel_a_running_job())
    with ExitStack() as files:
        # One of them gets the buffer's descriptor, unless the job keeps the buffer.
        later = [files.enter_context((tmp_path / str(number)).open("xb")) for number in range(20)]
        allowed.touch()
        for _ in range(sandbox.workers):
            sandbox.result(sandbox.submit(time.sleep, 0.2))
        assert {os.fstat(file.fileno()).st_size for file in later} == {0}


def test_a_finished_job_frees_its_buffer(sandbox: Sandbox) -> None:
    before = len(os.listdir("/proc/self/fd"))
    sandbox.result(sandbox.submit(invert, Buffer(1000).handle))
    wait_until(lambda: len(os.listdir("/proc/self/fd")) == before, 10)


def test_workers_end_with_a_run_that_is_killed(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = (
        "import time\n"
        "from pathlib import Path\n"
        "from caption_assets.workers.sandbox import Sandbox\n"
        "if __name__ == '__main__':\n"
        "    with Sandbox(workers=2) as sandbox:\n"
        "        for job in [sandbox.submit(time.sleep, 0.5) for _ in range(2)]:\n"
        "            sandbox.result(job)\n"
        f"        Path({str(ready)!r}).touch()\n"
        "        time.sleep(600)\n"
    )
    (tmp_path / "run.py").write_text(script)
    run = subprocess.Popen([sys.executable, str(tmp_path / "run.py")])
    while not ready.exists():
        assert run.poll() is None
        time.sleep(0.1)
    workers = psutil.Process(run.pid).children(recursive=True)
    assert len(workers) == 2
    run.kill()
    run.wait()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive


def test_a_run_that_ignores_sigterm_ends_although_its_sandbox_is_not_closed(tmp_path: Path) -> None:
    script = (
        "from caption_assets.workers.sandbox import Sandbox\n"
        "if __name__ == '__main__':\n"
        "    sandbox = Sandbox(workers=1)\n"
        "    sandbox.result(sandbox.submit(abs, -1))\n"
    )
    (tmp_path / "run.py").write_text(script)
    ignoring = ["env", "--ignore-signal=TERM", sys.executable, str(tmp_path / "run.py")]
    assert subprocess.run(ignoring, timeout=60).returncode == 0


def test_job_of_a_closed_sandbox_is_cancelled() -> None:
    with Sandbox(workers=1) as sandbox:
        pass
    assert sandbox.submit(os.getpid).cancelled()


def test_closing_a_sandbox_ends_its_workers() -> None:
    before = processes()
    with Sandbox(workers=2) as sandbox:
        for job in [sandbox.submit(time.sleep, 0.5) for _ in range(2)]:
            sandbox.result(job)
        assert len(processes() - before) == 2
    assert not processes() - before


PROBE = """
from caption_assets.sources.manifest import probe_clips
from caption_assets.workers.sandbox import Sandbox
from caption_assets.sources.shard import find_shard
from caption_assets.video.window import Windowing
from caption_assets.store.root import Root

source = Root.open({source!r})
with Sandbox(workers=2) as sandbox:
    for clip in probe_clips(sandbox, source, find_shard(source, "shard"), Windowing()):
        print([(row.status.value, row.clip_frames) for row in clip.rows])
"""
"""A script without a main guard, which processes spawned by multiprocessing would run again."""
NOTEBOOK = "from code import InteractiveInterpreter as Kernel; Kernel().runcode({script!r})"


@pytest.mark.parametrize("way", ["script", "module", "stdin", "command", "notebook"])
def test_clips_are_probed_from_a_script_without_a_main_guard(tmp_path: Path, way: str) -> None:
    (tmp_path / "source" / "shard").mkdir(parents=True)
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "source" / "shard" / name).write_bytes(counting_video(30))
    script = PROBE.format(source=str(tmp_path / "source"))
    (tmp_path / "probe.py").write_text(script)
    arguments = {
        "script": ["probe.py"],
        "module": ["-m", "probe"],
        "stdin": ["-"],
        "command": ["-c", script],
        "notebook": ["-c", NOTEBOOK.format(script=script)],
    }[way]
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        input=script if way == "stdin" else "",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.splitlines() == ["[('ok', 30)]"] * 2
    assert done.stderr == ""


def test_a_function_of_the_main_script_is_rejected_with_the_remedy(tmp_path: Path) -> None:
    script = (
        "from caption_assets.workers.sandbox import Sandbox\n"
        "def own(): pass\n"
        "with Sandbox(workers=1) as sandbox:\n"
        "    print(sandbox.submit(own).exception(), sandbox.submit(abs, -1).result())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert "define it in a module" in done.stdout
    assert done.stdout.endswith("1\n")


@pytest.mark.parametrize("limits", [{"seconds": 0}, {"memory_gb": 0.5}])
def test_limits_out_of_range_are_rejected(limits: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="limit"):
        SandboxLimits(**limits)


def test_a_job_whose_worker_is_terminated_is_retried(tmp_path: Path) -> None:
    with Sandbox(workers=1) as sandbox:
        assert sandbox.result(sandbox.submit(terminate_the_first_time, tmp_path / "marker")) == "done"
