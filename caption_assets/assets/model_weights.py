"""The model's files, verified and mirrored in the root."""

import dagster as dg

from caption_assets.assets.failures import clear_failures
from caption_assets.assets.pods import WEIGHTS_SIZE, cpu_pod, step_retries
from caption_assets.assets.progress import WeightsProgress
from caption_assets.assets.project import MODEL_GROUP, Project
from caption_assets.assets.termination import stoppable
from caption_assets.models.source import find_source
from caption_assets.models.weights import WEIGHTS
from caption_assets.resources import Storage, Weights
from caption_assets.settings import Settings


def build_model_weights(settings: Settings) -> dg.AssetsDefinition:
    """The asset for the model that ``settings`` names."""
    variant = settings.variant

    @dg.asset(
        key=Project(settings.project).weights,
        description=f"{variant.hub_id} @ {variant.revision}: every file with its SHA-256, the manifest written last.",
        group_name=MODEL_GROUP,
        kinds={"safetensors"},
        code_version=variant.folder,
        op_tags=cpu_pod(WEIGHTS_SIZE),
        retry_policy=step_retries(settings),
    )
    def model_weights(
        context: dg.AssetExecutionContext, storage: Storage, weights: Weights
    ) -> dg.MaterializeResult[None]:
        with stoppable(context), clear_failures():
            root = storage.root()
            manifest = weights.publish(root, variant, WeightsProgress(context.log))
        return dg.MaterializeResult(
            data_version=dg.DataVersion(manifest.digest[:16]),
            metadata={
                "model": manifest.hub_id,
                "revision": manifest.revision,
                "files": len(manifest.files),
                "source": find_source(variant, root.access).address,
                "size_mb": round(manifest.size / 1e6, 1),
                "path": dg.MetadataValue.path(root.address(f"{WEIGHTS}/{variant.folder}")),
            },
        )

    return model_weights
