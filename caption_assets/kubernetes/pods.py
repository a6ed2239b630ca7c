"""Pod sizes and retries of steps that run in a Kubernetes pod each.

The launcher sets the volumes, settings and security context of all pods (``k8s/values.yaml``).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

from caption_assets import __version__
from caption_assets.captioning.engine import CACHE_BYTES_PER_PIXEL
from caption_assets.environment import PREFIX
from caption_assets.errors import CaptionAssetsError
from caption_assets.export.config import Cut
from caption_assets.settings import Settings
from caption_assets.workers.sandbox import MAX_WORKERS

CAPTION_STEP = "captions"
"""Name of the step that captions."""
GPU_POOL = "gpu"
"""Pool of the caption step. It has a limit only if the instance's configuration sets one."""
VERSION_VARIABLE = "CAPTION_ASSETS_VERSION"
"""Environment variable of a captioning pod that contains the project's version in the run's pod."""

GRACE_SECONDS = 60
"""Time from SIGTERM to SIGKILL of a captioning pod. A stopped step ends within 30 s."""

JOB_TTL_SECONDS = 24 * 60 * 60
"""Time for which a step's Job is kept after its end, at most until its run's pod is deleted."""

SHARED_MEMORY = "2Gi"
"""Size of /dev/shm, through which the engine's processes exchange tensors. A container's default is 64 MiB."""
WORKER_GB = 0.75
"""Memory of a decode worker with an ordinary clip."""
WORKER_WINDOWS = 16
"""Number of windows for each decode worker; fewer do not justify its start."""
RUN_GB = 1.0
"""Memory of the step's own process."""
ROW_KB = 16
"""Memory of a window's row of one stage. Rows stay in memory until the shard is published."""
FRAME_BYTES_PER_PIXEL = 2 * 3
"""Bytes of decoded frames for each pixel of a visual token: two frames, three channels."""


class ImageMismatch(CaptionAssetsError):
    """A captioning pod with another version of the project than the run's pod."""


@dataclass(frozen=True, slots=True)
class PodSize:
    """The resources of a pod."""

    cpus: float
    """Requested cores."""
    memory_gb: float
    """Requested memory, in GiB."""
    memory_limit_gb: float
    """Memory limit, in GiB."""
    gpus: int = 0

    @property
    def resources(self) -> dict[str, dict[str, str]]:
        """Requests and limits of a container's specification."""
        limits = {"memory": _mebibytes(self.memory_limit_gb)}
        if self.gpus:
            limits["nvidia.com/gpu"] = str(self.gpus)
        return {"requests": {"cpu": f"{self.cpus:g}", "memory": _mebibytes(self.memory_gb)}, "limits": limits}


WEIGHTS_SIZE = PodSize(cpus=1, memory_gb=1, memory_limit_gb=4)
MANIFEST_SIZE = PodSize(cpus=1, memory_gb=2, memory_limit_gb=8)
EXPORT_SIZE = PodSize(cpus=1, memory_gb=2, memory_limit_gb=8)
CUT_WORKERS = 4
"""Default number of workers that cut windows in a pod, which sees all cores of its node."""
CUT_GB = 1.0
"""Memory of a worker that cuts a clip of 1080 lines, with the clip's bytes."""


def caption_size(settings: Settings, windows: int | None = None, tokens: int | None = None) -> PodSize:
    """The size of a captioning pod.

    Args:
        settings: settings that determine the number of GPUs, and the maximum of all other resources.
        windows: number of windows to caption; None for the maximum.
        tokens: number of visual tokens of all windows, from the metadata of their manifests.
    """
    variant = settings.variant
    models = (variant, *settings.language_models)  # the engines run one after the other
    shares = max(settings.gpus, 1)
    workers = settings.decode_workers or MAX_WORKERS
    cpus = max(model.cpus for model in models) * shares
    frames_gb = settings.frames_gb
    cache_gb = float(_first(settings.processor_cache_gb, variant.engine.get("mm_processor_cache_gb"), 4.0))
    if windows is not None and tokens is not None:
        workers = worker_count(settings, windows)
        cpus = min(cpus, 1 + workers)
        pixels = tokens * variant.pixels.factor**2
        frames_gb = min(frames_gb, pixels * FRAME_BYTES_PER_PIXEL / 2**30)
        cache_gb = min(cache_gb, pixels * CACHE_BYTES_PER_PIXEL / 2**30)
    rows_gb = (windows or 0) * len(settings.caption_recipe.stages) * ROW_KB / 2**20
    # The step's process and each replica have a cache.
    caches_gb = cache_gb * (1 + settings.data_parallel_size)
    memory = (
        max(model.host_gb for model in models) * shares + caches_gb + frames_gb + workers * WORKER_GB + RUN_GB + rows_gb
    )
    # Room for two hostile clips at once: a pod that exceeds its limit is killed, and the engine with it.
    return PodSize(cpus, memory, memory + 2 * settings.decode_memory_gb, settings.gpus)


def export_size(settings: Settings) -> PodSize:
    """The size of a pod that exports."""
    if settings.cut.cut is Cut.NONE:
        return EXPORT_SIZE
    workers = settings.decode_workers or CUT_WORKERS
    memory = RUN_GB + workers * CUT_GB
    return PodSize(workers, memory, memory + 2 * settings.decode_memory_gb)


def worker_count(settings: Settings, windows: int) -> int:
    """Number of decode workers for a number of windows."""
    return min(settings.decode_workers or MAX_WORKERS, max(math.ceil(windows / WORKER_WINDOWS), 1))


def caption_run_config(settings: Settings, windows: int, tokens: int) -> dict[str, Any]:
    """Run configuration that sizes the captioning pod for its work.

    A run without it gets the maximum size of the settings. A run's tags do not reach its steps.

    Args:
        settings: the settings of the definitions. With another executor than ``k8s`` the configuration is empty.
        windows: number of windows that the run captions.
        tokens: number of visual tokens of all windows, from the metadata of their manifests.
    """
    if settings.executor != "k8s":
        return {}
    container = {
        "resources": caption_size(settings, windows, tokens).resources,
        # By default the step starts one worker for each core of the node. The pod has too little memory for them.
        "env": [{"name": f"{PREFIX}DECODE_WORKERS", "value": str(worker_count(settings, windows))}],
    }
    return {"execution": {"config": {"per_step_k8s_config": {CAPTION_STEP: {"container_config": container}}}}}


def caption_pod(settings: Settings) -> dict[str, Any]:
    """Op tags of the caption step."""
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
    if settings.metrics_port:  # Prometheus Operator scrapes declared ports only
        container["ports"] = [{"name": "metrics", "container_port": settings.metrics_port}]
    if settings.gpus:
        pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
        pod["node_selector"] = settings.gpu_node_selector
    return _tags({"container_config": container, "pod_spec_config": pod})


def cpu_pod(size: PodSize) -> dict[str, Any]:
    """Op tags of a step without a GPU."""
    return _tags({"container_config": {"resources": size.resources}})


def step_pod(settings: Settings) -> dict[str, Any]:
    """Configuration of all steps' pods, as dagster-k8s's ``step_k8s_config``."""
    pod: dict[str, Any] = {"automount_service_account_token": False}  # steps do not call the cluster's API
    if settings.step_service_account:
        pod["service_account_name"] = settings.step_service_account
    return {
        "pod_spec_config": pod,
        "pod_template_spec_metadata": {
            # An autoscaler must not remove the step's node.
            "annotations": {
                "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
                "karpenter.sh/do-not-disrupt": "true",
            }
        },
        # A replacement pod would find its step already started, and exit silently. Dagster retries the step instead.
        "job_spec_config": {
            "backoff_limit": 0,
            "pod_replacement_policy": "Failed",
            "ttl_seconds_after_finished": JOB_TTL_SECONDS,
        },
    }


def _tags(config: dict[str, Any]) -> dict[str, Any]:
    return {"dagster-k8s/config": config}


def check_image() -> None:
    """Check that this pod's image has the same version of the project as the run's pod.

    Raises:
        ImageMismatch: if the versions differ; two versions may make different tables.
    """
    here, wanted = __version__, os.environ.get(VERSION_VARIABLE)
    if wanted is not None and wanted != here:
        raise ImageMismatch(
            f"the captioning pod's image has version {here} of caption-assets, the run's pod has {wanted}: build both "
            "from one version, and set them as CAPTION_GPU_IMAGE and as the code location's image"
        )


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def _mebibytes(gibibytes: float) -> str:
    return f"{math.ceil(gibibytes * 1024)}Mi"
