"""The files of the model and of its LoRA adapter, verified and mirrored in the root."""

import dagster as dg

from caption_assets.dagster_lib.failures import as_dagster_failure
from caption_assets.dagster_lib.progress import WeightsProgress
from caption_assets.dagster_lib.project import MODEL_GROUP, Project
from caption_assets.dagster_lib.termination import stoppable
from caption_assets.kubernetes.pods import WEIGHTS_SIZE, cpu_pod, step_retries
from caption_assets.models.source import find_source
from caption_assets.models.weights import WEIGHTS, joint_version
from caption_assets.resources import Storage, Weights
from caption_assets.settings import Settings


def build_model_weights(settings: Settings) -> dg.AssetsDefinition:
    """The asset for the model, and the adapter, that ``settings`` names."""
    variant, lora = settings.variant, settings.adapter
    adapter = f" With the LoRA adapter {lora.hub_id} @ {lora.revision}." if lora else ""

    @dg.asset(
        key=Project(settings.project).weights,
        description=f"{variant.hub_id} @ {variant.revision}: every file with its SHA-256, the manifest written last."
        + adapter,
        group_name=MODEL_GROUP,
        kinds={"safetensors"},
        code_version=settings.weights_code,
        op_tags=cpu_pod(WEIGHTS_SIZE),
        retry_policy=step_retries(settings),
    )
    def model_weights(
        context: dg.AssetExecutionContext, storage: Storage, weights: Weights
    ) -> dg.MaterializeResult[None]:
        with stoppable(context), as_dagster_failure():
            root = storage.root()
            manifests = [
                weights.publish(root, checkpoint, WeightsProgress(context.log), settings.config_overrides)
                for checkpoint in settings.checkpoints
            ]
        model = manifests[0]
        metadata: dict[str, dg.RawMetadataValue] = {
            "model": model.hub_id,
            "revision": model.revision,
            "files": sum(len(manifest.files) for manifest in manifests),
            "source": find_source(variant, root.access).address,
            "size_mb": round(sum(manifest.size for manifest in manifests) / 1e6, 1),
            "path": dg.MetadataValue.path(root.address(f"{WEIGHTS}/{variant.folder}")),
        }
        if lora:
            metadata["adapter"] = f"{lora.hub_id} @ {lora.revision}"
            metadata["adapter_source"] = find_source(lora, root.access).address
        return dg.MaterializeResult(data_version=dg.DataVersion(joint_version(manifests)), metadata=metadata)

    return model_weights
