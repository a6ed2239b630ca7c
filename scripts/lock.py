"""The resolver of the lock files in `requirements/`: `make lock`.

Each lock file pins all that its extras need, for Python 3.11 and later, and is installed with `--no-deps`. Lock files
name no registry: pip's configuration on the installing machine does.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from scripts.setup_env import PROJECT, ROOT, UV_VERSION

OLDEST_PYTHON = "3.11"

# vllm requires protobuf 7 on s390x, and dagster requires less than 7 everywhere.
GPU_SETTINGS = """
[tool.uv]
override-dependencies = ["protobuf>=6.33.5,<7"]
"""

# torchaudio and torchcodec: the project handles no sound and decodes with PyAV, and the registry's builds need CUDA.
# triton: xgrammar requires it; it is a GPU compiler of 1 GB.
# torch: the registry's build requires several GB of CUDA libraries. So uv resolves its version with the requirements of
# the CPU build, and the file names the CPU build.
CPU_SETTINGS = """
[tool.uv]
override-dependencies = ["protobuf>=6.33.5,<7", "torch==2.13.0"]
constraint-dependencies = ["torchvision==0.28.0"]
exclude-dependencies = ["torchaudio", "torchcodec", "triton"]

[[tool.uv.dependency-metadata]]
name = "torch"
version = "2.13.0"
requires-dist = [
    "filelock", "typing-extensions>=4.10.0", "setuptools>=77.0.3", "sympy>=1.13.3", "networkx>=2.5.1", "jinja2",
    "fsspec>=0.8.5",
]
"""


@dataclass(frozen=True)
class Lock:
    """A lock file: its purpose and its contents."""

    name: str
    purpose: str
    extras: tuple[str, ...] = ()
    settings: str = ""
    """Settings of uv, as TOML."""
    torch: str = "torch==2.13.0"
    """Line of the file that pins torch."""
    within: str = ""
    """Name of an earlier lock file whose versions it uses."""


LOCKS = (
    Lock("slim", "the project without an engine: pip install ."),
    Lock(
        "cpu",
        "extras cpu, k8s, dev, docs; for make setup",
        ("cpu", "k8s", "dev", "docs"),
        CPU_SETTINGS,
        "torch==2.13.0+cpu",
    ),
    Lock("gpu", "extras gpu, k8s", ("gpu", "k8s"), GPU_SETTINGS),
    Lock("k8s", "extra k8s, without an engine; for the images, one of which brings the engine", ("k8s",), within="gpu"),
)


def resolve(lock: Lock, uv: Path, folder: Path) -> str:
    """Resolve a lock file with uv, and return its pins."""
    project = folder / "pyproject.toml"
    project.write_text(PROJECT.read_text() + lock.settings)
    options = ["--universal", "--python-version", OLDEST_PYTHON, "--fork-strategy", "fewest", "--upgrade"]
    bare = ["--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]
    extras = [word for extra in lock.extras for word in ("--extra", extra)]
    versions = ["--constraint", str(ROOT / "requirements" / f"{lock.within}.lock")] if lock.within else []
    command = [str(uv), "pip", "compile", *options, *bare, *extras, *versions, str(project)]
    # uv reads its settings from its working folder.
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=folder).stdout


def write(lock: Lock, pins: str) -> None:
    """Write a lock file, with a heading that states its purpose."""
    path = ROOT / "requirements" / f"{lock.name}.lock"
    heading = f"# {lock.purpose}\n# Complete: install with --no-deps. Made by `make lock`.\n"
    path.write_text(heading + pins.replace("torch==2.13.0\n", f"{lock.torch}\n"))
    print(f"{path.relative_to(ROOT)}: {len(pins.splitlines())} packages")


def main() -> None:
    """Resolve and write every lock file."""
    with tempfile.TemporaryDirectory(prefix="caption-assets-lock-") as name:
        folder = Path(name)
        uv = folder / "uv"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--root-user-action", "ignore"]
        subprocess.run([*pip, "--target", str(uv), f"uv=={UV_VERSION}"], check=True)
        for lock in LOCKS:
            write(lock, resolve(lock, uv / "bin" / "uv", folder))


if __name__ == "__main__":
    main()
