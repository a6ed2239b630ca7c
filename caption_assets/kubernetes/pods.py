"""Pod sizes and retries of the steps, where each runs in a Kubernetes pod of its own.

Volumes, settings and the security context of all pods are the launcher's (``k8s/values.yaml``).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import dagster as dg

from caption_assets import __version__
from caption_assets.captioning.engine import CACHE_BYTES_PER_PIXEL
from caption_assets.environment import PREFIX
from caption_assets.errors import CaptionAssetsError
from caption_assets.settings import Settings
from caption_assets.workers.sandbox import MAX_WORKERS

CAPTION_STEP = "captions"
"""Name of the step that captions."""
GPU_POOL = "gpu"
"""The pool of the runs that caption. It has a limit only where an instance's configuration gives it one."""
VERSION_VARIABLE = "CAPTION_ASSETS_VERSION"
"""Tells a captioning pod which version of the project launched it."""

MAX_RETRIES = 3
"""Retries of a step whose pod was lost; what is in checkpoints is not done again."""
GRACE_SECONDS = 60
"""From SIGTERM to SIGKILL of a captioning pod. A step that is stopped ends within 30 s."""

STEP_SECONDS = 24 * 60 * 60
"""How long a step's Job can be looked at after its end; not longer than its run's, with whose pod it goes."""

SHARED_MEMORY = "2Gi"
"""For /dev/shm, through which the engine's processes exchange tensors; a container has 64 MiB of its own."""
WORKER_GB = 0.75
"""Memory of one process that decodes, with an ordinary clip."""
WORKER_WINDOWS = 16
"""Windows for which another process that decodes is worth its start."""
RUN_GB = 1.0
"""Memory of the step's own process."""
ROW_KB = 32
"""Memory of a window's rows until its shard is published."""
FRAME_BYTES_PER_PIXEL = 2 * 3
"""Of decoded frames, for each pixel of a visual token's square: two frames, three channels."""


class ImageMismatch(CaptionAssetsError):
    """A pod whose image is of another version of the project than its run's."""


@dataclass(frozen=True, slots=True)
class PodSize:
    """What a pod asks of its node."""

    cpus: float
    """Cores."""
    memory_gb: float
    """In GiB."""
    memory_limit_gb: float
    """More than this ends it."""
    gpus: int = 0

    @property
    def resources(self) -> dict[str, dict[str, str]]:
        """As in a container's specification."""
        limits = {"memory": _mebibytes(self.memory_limit_gb)}
        if self.gpus:
            limits["nvidia.com/gpu"] = str(self.gpus)
        return {"requests": {"cpu": f"{self.cpus:g}", "memory": _mebibytes(self.memory_gb)}, "limits": limits}


WEIGHTS_SIZE = PodSize(cpus=1, memory_gb=1, memory_limit_gb=4)
MANIFEST_SIZE = PodSize(cpus=1, memory_gb=2, memory_limit_gb=8)
EXPORT_SIZE = PodSize(cpus=1, memory_gb=2, memory_limit_gb=8)


def step_retries(settings: Settings) -> dg.RetryPolicy | None:
    """The retry policy of all steps.

    Dagster takes any interruption for a reason to retry. Only an executor that gives each step a pod makes the retry in
    another pod, and it makes none in a run that is being cancelled. The others would make it in the process that was
    told to stop.
    """
    return dg.RetryPolicy(max_retries=MAX_RETRIES) if settings.executor == "k8s" else None


def caption_size(settings: Settings, windows: int | None = None, tokens: int | None = None) -> PodSize:
    """What captioning asks for.

    Args:
        settings: decide the GPUs, and the most of all else.
        windows: that will be captioned; as many as may come if not known.
        tokens: visual tokens of them all, as ``predicted_visual_tokens`` of their manifests.
    """
    variant = settings.variant
    shares = max(settings.gpus, 1)
    workers = settings.decode_workers or MAX_WORKERS
    cpus = variant.cpus * shares
    frames_gb = settings.frames_gb
    cache_gb = float(_first(settings.processor_cache_gb, variant.engine.get("mm_processor_cache_gb"), 4.0))
    if windows is not None and tokens is not None:
        workers = clip_workers(settings, windows)
        cpus = min(cpus, 1 + workers)
        pixels = tokens * variant.pixels.factor**2
        frames_gb = min(frames_gb, pixels * FRAME_BYTES_PER_PIXEL / 2**30)
        cache_gb = min(cache_gb, pixels * CACHE_BYTES_PER_PIXEL / 2**30)
    rows_gb = (windows or 0) * ROW_KB / 2**20
    # The cache is in the step's process and in each replica's.
    caches_gb = cache_gb * (1 + settings.data_parallel_size)
    memory = variant.host_gb * shares + caches_gb + frames_gb + workers * WORKER_GB + RUN_GB + rows_gb
    # Two hostile clips at once are no reason to lose the engine.
    return PodSize(cpus, memory, memory + 2 * settings.decode_memory_gb, settings.gpus)


def clip_workers(settings: Settings, windows: int) -> int:
    """Processes that decode, as many as so much work is worth."""
    return min(settings.decode_workers or MAX_WORKERS, max(math.ceil(windows / WORKER_WINDOWS), 1))


def caption_run_config(settings: Settings, windows: int, tokens: int) -> dict[str, Any]:
    """Run configuration with which the captioning pod is as large as its work; for who launches runs by program.

    A run that is launched without it gets the largest that the settings ask for. Tags of a run do not reach its steps.

    Args:
        settings: as the definitions were built with; with another executor than ``k8s`` nothing is configured.
        windows: that the run will caption.
        tokens: visual tokens of them all, as ``predicted_visual_tokens`` of their manifests.
    """
    if settings.executor != "k8s":
        return {}
    container = {
        "resources": caption_size(settings, windows, tokens).resources,
        # By itself the step starts as many as the node has cores, for which its memory would be too small.
        "env": [{"name": f"{PREFIX}DECODE_WORKERS", "value": str(clip_workers(settings, windows))}],
    }
    return {"execution": {"config": {"per_step_k8s_config": {CAPTION_STEP: {"container_config": container}}}}}


def caption_pod(settings: Settings) -> dict[str, Any]:
    """Op tags of the step that captions."""
    container: dict[str, Any] = {
        "resources": caption_size(settings).resources,
        "env": [{"name": VERSION_VARIABLE, "value": __version__}],
        "volume_mounts": [{"name": "shm", "mount_path": "/dev/shm"}],
    }
    pod: dict[str, Any] = {
        "termination_grace_period_seconds": GRACE_SECONDS,
        "volumes": [{"name": "shm", "empty_dir": {"medium": "Memory", "size_limit": SHARED_MEMORY}}],
    }
    if settings.gpu_image:
        container["image"] = settings.gpu_image.replace("{version}", __version__)
    if settings.metrics_port:  # Prometheus Operator asks only ports that are declared
        container["ports"] = [{"name": "metrics", "container_port": settings.metrics_port}]
    if settings.gpus:
        pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
        pod["node_selector"] = settings.gpu_node_selector
    return _tags({"container_config": container, "pod_spec_config": pod})


def cpu_pod(size: PodSize) -> dict[str, Any]:
    """Op tags of a step that needs no GPU."""
    return _tags({"container_config": {"resources": size.resources}})


def step_pod(settings: Settings) -> dict[str, Any]:
    """What the pods of all steps have in common, as dagster-k8s's ``step_k8s_config``."""
    pod: dict[str, Any] = {"automount_service_account_token": False}  # steps ask nothing of the cluster
    if settings.step_service_account:
        pod["service_account_name"] = settings.step_service_account
    return {
        "pod_spec_config": pod,
        "pod_template_spec_metadata": {
            # A node that is to be given back for its idleness waits for the step.
            "annotations": {
                "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
                "karpenter.sh/do-not-disrupt": "true",
            }
        },
        # A pod that Kubernetes starts anew would find its step begun, and end without a word: Dagster starts another.
        "job_spec_config": {
            "backoff_limit": 0,
            "pod_replacement_policy": "Failed",
            "ttl_seconds_after_finished": STEP_SECONDS,
        },
    }


def _tags(config: dict[str, Any]) -> dict[str, Any]:
    return {"dagster-k8s/config": config}


def check_image() -> None:
    """Compare the version of this pod's image with that of the run, if one launched it.

    Raises:
        ImageMismatch: if they differ: two versions may make different tables.
    """
    here, wanted = __version__, os.environ.get(VERSION_VARIABLE)
    if wanted is not None and wanted != here:
        raise ImageMismatch(
            f"the captioning pod's image has version {here} of caption-assets, and the run's has {wanted}: build both "
            "from one version, and name them in CAPTION_GPU_IMAGE and as the code location's image"
        )


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def _mebibytes(gibibytes: float) -> str:
    return f"{math.ceil(gibibytes * 1024)}Mi"
