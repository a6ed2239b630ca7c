"""What a step asks of Kubernetes when it runs in a pod of its own."""

from __future__ import annotations

from typing import Any

from caption_assets.settings import Settings


def gpu_pod(settings: Settings) -> dict[str, Any]:
    """Op tags of the caption step: as many GPUs as the engine is spread over. The other steps carry none."""
    if settings.variant.gpus == 0:
        return {}
    limits = {"nvidia.com/gpu": str(settings.tensor_parallel_size * settings.data_parallel_size)}
    return {"dagster-k8s/config": {"container_config": {"resources": {"limits": limits}}}}
