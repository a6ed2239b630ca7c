"""What a step asks of Kubernetes when it runs in a pod of its own."""

from __future__ import annotations

from typing import Any

from caption_assets.models.variants import Variant


def gpu_pod(variant: Variant) -> dict[str, Any]:
    """Op tags of the caption step: as many GPUs as the model wants. The other steps carry none and get no GPU."""
    if variant.gpus == 0:
        return {}
    limits = {"nvidia.com/gpu": str(variant.gpus)}
    return {"dagster-k8s/config": {"container_config": {"resources": {"limits": limits}}}}
