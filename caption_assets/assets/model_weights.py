"""The asset of the models' weights: a verified mirror of all models and the LoRA adapter in the root."""

import dagster as dg

from caption_assets.dagster_lib.failures import as_dagster_failure
from caption_assets.dagster_lib.metadata import Metadata, meanings
from caption_assets.dagster_lib.progress import DownloadProgress
from caption_assets.dagster_lib.project import MODEL_GROUP, Project
from caption_assets.dagster_lib.project_claim import claim_root
from caption_assets.dagster_lib.retry_policy import step_retry_policy
from caption_assets.dagster_lib.termination import stoppable
from caption_assets.kubernetes.pods import WEIGHTS_SIZE, cpu_pod
from caption_assets.models.source import find_source
from caption_assets.models.weights import WEIGHTS, joint_version
from caption_assets.resources import Storage, Weights
from caption_assets.settings import Settings

MEANINGS = {
    "model": "Hub id of the model",
    "revision": "Commit of the model's repository",
    "files": "Number of mirrored files, including those of the adapter and of language models",
    "source": "Address that the model was copied from",
    "size_mb": "Total size of the files, in megabytes",
    "path": "Folder of the model in the mirror",
    "adapter": "Hub id and revision of the LoRA adapter",
    "adapter_source": "Address that the adapter was copied from",
    "language_models": "Hub ids and revisions of the language models of the recipe's stages",
}
"""Meaning of each metadata entry."""


def build_model_weights(settings: Settings) -> dg.AssetsDefinition:
    """Build the asset."""
    variant, lora = settings.variant, settings.adapter
    adapter = f" Includes the LoRA adapter {lora.hub_id} @ {lora.revision}." if lora else ""
    languages = ", ".join(f"{model.hub_id} @ {model.revision}" for model in settings.language_models)
    others = f" Includes the language models of the recipe: {languages}." if languages else ""

    @dg.asset(
        key=Project.of(settings).weights,
        description=f"Verified mirror of {variant.hub_id} @ {variant.revision}, with each file's SHA-256."
        f"{adapter}{others}",
        metadata=meanings(MEANINGS),
        group_name=MODEL_GROUP,
        kinds={"safetensors"},
        code_version=settings.weights_code,
        op_tags=cpu_pod(WEIGHTS_SIZE),
        retry_policy=step_retry_policy(settings),
    )
    def model_weights(
        context: dg.AssetExecutionContext, storage: Storage, weights: Weights
    ) -> dg.MaterializeResult[None]:
        with stoppable(context), as_dagster_failure():
            root = storage.root()
            claim_root(context.instance, Project.of(settings), storage)
            manifests = [
                weights.publish(
                    root,
                    checkpoint,
                    DownloadProgress(context.log),
                    settings.config_overrides if checkpoint.video else {},
                )
                for checkpoint in settings.checkpoints
            ]
        model = manifests[0]
        context.log.info(f"weights of {model.hub_id}: {root.address(f'{WEIGHTS}/{variant.folder}')}")
        metadata: Metadata = {
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
        if languages:
            metadata["language_models"] = languages
        version = joint_version(manifests[: len(settings.video_checkpoints)])
        return dg.MaterializeResult(data_version=dg.DataVersion(version), metadata=metadata)

    return model_weights
