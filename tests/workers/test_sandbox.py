from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
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
from tests.videos import counting_video


def spin() -> None:
    while True:
        pass


def doze() -> None:
    time.sleep(3600)


def die() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def devour() -> int:
    return len(np.ones(3 << 30, np.uint8))


def refuse() -> None:
    raise UnreadableClip("damaged", "it breaks off")


def die_soon() -> int:
    threading.Timer(0.05, die).start()
    return os.getpid()


def die_while_it_answers(seconds: float) -> bytes:
    threading.Timer(seconds, die).start()
    return bytes(300 << 20)


def end_the_first_time(marker: Path) -> str:
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    return "done"


class OddError(Exception):
    """Can be pickled and not be made again."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(one + other)


def fail_oddly() -> None:
    raise OddError("the file is ", "odd")


def invert(handle: BufferHandle) -> int:
    with handle.map() as memory:
        array = np.frombuffer(memory, np.uint8)
        array[:] = 255 - array
        total = int(array.sum())
        del array  # a map in use cannot be closed
    return total


def processes() -> set[psutil.Process]:
    """The living children of this process."""
    return set(psutil.Process().children())


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(SandboxLimits(seconds=2.0, memory_gb=1.0), workers=2) as sandbox:
        yield sandbox


@pytest.mark.parametrize(
    ("deed", "kind"),
    [(spin, "too_slow"), (doze, "too_slow"), (die, "decoder_died"), (devour, "too_large"), (refuse, "damaged")],
)
def test_what_a_clip_does_to_its_worker_costs_that_clip_alone(sandbox: Sandbox, deed, kind: str) -> None:  # type: ignore[no-untyped-def]
    bad = sandbox.submit(deed)
    good = [sandbox.submit(abs, -number) for number in range(20)]
    with pytest.raises(UnreadableClip) as error:
        sandbox.result(bad)
    assert error.value.kind == kind
    assert [sandbox.result(job) for job in good] == list(range(20))


@pytest.mark.parametrize("last_job", [os.getpid, die_soon])
def test_a_worker_that_dies_when_it_has_nothing_to_do_costs_nothing(last_job: Callable[[], int]) -> None:
    with Sandbox(SandboxLimits(seconds=10.0), workers=1) as sandbox:
        worker = psutil.Process(sandbox.result(sandbox.submit(last_job)))
        if last_job is os.getpid:
            worker.kill()
        psutil.wait_procs([worker], timeout=10)
        assert [sandbox.result(sandbox.submit(abs, -number)) for number in range(3)] == [0, 1, 2]


def test_a_job_that_a_dying_worker_is_given_is_made_by_another() -> None:
    with Sandbox(SandboxLimits(seconds=10.0), workers=1) as sandbox:
        for _ in range(5):
            os.kill(sandbox.result(sandbox.submit(os.getpid)), signal.SIGKILL)
            assert sandbox.result(sandbox.submit(abs, -1)) == 1


def test_a_worker_that_dies_while_it_answers_costs_its_clip_alone() -> None:
    with Sandbox(SandboxLimits(seconds=20.0), workers=1) as sandbox:
        for tenths in range(3, 9):
            with suppress(UnreadableClip):  # a fast machine may have answered
                sandbox.result(sandbox.submit(die_while_it_answers, tenths / 10))


def test_an_error_that_cannot_be_handed_over_is_told_in_words(sandbox: Sandbox) -> None:
    with pytest.raises(RuntimeError, match="OddError: the file is odd"):
        sandbox.result(sandbox.submit(fail_oddly))
    assert sandbox.result(sandbox.submit(abs, -1)) == 1


def test_workers_killed_at_random_cost_at_most_a_job_each() -> None:
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


def test_jobs_that_wait_at_the_end_are_cancelled_and_the_one_at_work_is_not_waited_for() -> None:
    with Sandbox(workers=1) as sandbox:
        sandbox.result(sandbox.submit(abs, -1))
        at_work, waiting = sandbox.submit(doze), sandbox.submit(abs, -1)
        while not at_work.running():
            time.sleep(0.01)
    assert waiting.cancelled()
    with pytest.raises(UnreadableClip, match="died of it"):
        sandbox.result(at_work)


def test_a_job_can_be_awaited(sandbox: Sandbox) -> None:
    async def both() -> int:
        with pytest.raises(UnreadableClip, match="died of it"):
            await sandbox.run(die)
        return await sandbox.run(abs, -3)

    assert asyncio.run(both()) == 3


def test_a_buffer_is_written_by_a_worker_and_read_here_without_a_copy(sandbox: Sandbox) -> None:
    buffer = Buffer(1000)
    pixels = np.frombuffer(buffer.memory, np.uint8)
    assert sandbox.result(sandbox.submit(invert, buffer.handle)) == 255 * 1000
    assert pixels.min() == 255
    del buffer
    assert pixels.max() == 255  # the memory lives as long as what looks at it


def test_a_buffers_memory_and_descriptor_are_given_back() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        Buffer(1 << 20)
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_worker_outlives_a_run_that_is_killed(tmp_path: Path) -> None:
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


def test_a_run_that_ignores_sigterm_ends_with_a_sandbox_that_nobody_closed(tmp_path: Path) -> None:
    script = (
        "from caption_assets.workers.sandbox import Sandbox\n"
        "if __name__ == '__main__':\n"
        "    sandbox = Sandbox(workers=1)\n"
        "    sandbox.result(sandbox.submit(abs, -1))\n"
    )
    (tmp_path / "run.py").write_text(script)
    ignoring = ["env", "--ignore-signal=TERM", sys.executable, str(tmp_path / "run.py")]
    assert subprocess.run(ignoring, timeout=60).returncode == 0


def test_the_sandboxs_end_is_its_workers_end() -> None:
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
"""A script without a main guard, which spawned processes would run once more."""
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


def test_a_function_of_the_main_script_is_refused_with_the_remedy(tmp_path: Path) -> None:
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
def test_limits_that_leave_nothing_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="limit"):
        SandboxLimits(**limits)


def test_a_job_whose_worker_is_told_to_end_with_the_runs_whole_group_is_no_fault_of_the_clips(tmp_path: Path) -> None:
    with Sandbox(workers=1) as sandbox:
        assert sandbox.result(sandbox.submit(end_the_first_time, tmp_path / "marker")) == "done"
