"""The LoRA adapter of an engine: its check against the model, and its arguments and requests for vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caption_assets.models.checkpoint import Lora
from caption_assets.models.lora import adapts_vision, check_fit, is_same_base, read_adapter_config
from caption_assets.models.variants import Variant
from caption_assets.models.weights import WeightsError

REQUEST_ID = 1
"""vLLM's id of the adapter; an engine has only one."""
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values of vLLM 0.32's ``max_lora_rank``."""
MERGE = "merge it into its model, and set CAPTION_MODEL to the result"


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter in a local folder, checked against the model."""

    lora: Lora
    folder: Path
    rank: int
    """Maximum rank of its modules."""
    has_vision: bool
    """Whether it adapts the vision tower or the connector to the language model."""
    warnings: tuple[str, ...] = ()
    """Warnings for the run's log: another base model, modules that vLLM ignores."""

    @classmethod
    def read(cls, lora: Lora, folder: Path, variant: Variant, model: Path) -> Adapter:
        """Read the adapter in ``folder`` and check it against the model ``variant`` in the folder ``model``.

        Raises:
            WeightsError: if it cannot be read, does not fit the model, or has a rank that vLLM does not support.
        """
        config = read_adapter_config(folder)
        if config.rank > RANKS[-1]:
            raise WeightsError(
                f"the adapter {lora.hub_id} has rank {config.rank}, but vLLM supports at most {RANKS[-1]}: {MERGE}"
            )
        trained = f"it was trained on {config.base}" if config.base else "its configuration names no base model"
        warnings = []
        try:
            unknown = check_fit(folder, model)
        except WeightsError as error:
            raise WeightsError(
                f"the adapter {lora.hub_id} does not fit the model {variant.hub_id}: {error}; {trained}: set "
                "CAPTION_MODEL to that model, or CAPTION_LORA to an adapter of this one"
            ) from error
        if not is_same_base(config.base, variant.hub_id):
            warnings.append(
                f"the adapter {lora.hub_id} is applied to {variant.hub_id}, but {trained}: its modules fit, but "
                "captions may be worse than with that model"
            )
        if unknown:
            warnings.append(
                f"{len(unknown)} modules of the adapter {lora.hub_id}, such as {unknown[0]}, are not in "
                f"{variant.hub_id}: vLLM ignores them"
            )
        return cls(lora, folder, config.rank, adapts_vision(folder), tuple(warnings))

    def arguments(self) -> Mapping[str, Any]:
        """Keyword arguments of vLLM's ``AsyncEngineArgs``."""
        return {
            "enable_lora": True,
            "max_loras": 1,
            "max_lora_rank": next(rank for rank in RANKS if rank >= self.rank),
            "enable_tower_connector_lora": self.has_vision,
        }

    def check(self, model_config: Any, lora_config: Any) -> None:
        """Check the adapter against vLLM's configurations of model and adapters, before the model is loaded.

        Raises:
            WeightsError: if vLLM cannot apply all of it.
        """
        from vllm.lora.peft_helper import PEFTHelper
        from vllm.model_executor.model_loader.utils import get_model_architecture

        architecture, name = get_model_architecture(model_config)
        if not getattr(architecture, "supports_lora", False):
            raise WeightsError(
                f"vLLM cannot apply the adapter {self.lora.hub_id}: {name} does not support LoRA: {MERGE}"
            )
        if lora_config.enable_tower_connector_lora and not getattr(
            architecture, "supports_tower_connector_lora", False
        ):
            raise WeightsError(
                f"the adapter {self.lora.hub_id} adapts the vision tower, but vLLM does not support LoRA for that of "
                f"{name}: {MERGE}"
            )
        try:
            PEFTHelper.from_local_dir(str(self.folder), None).validate_legal(lora_config)
        except (ValueError, TypeError) as error:
            raise WeightsError(
                f"vLLM cannot apply the adapter {self.lora.hub_id}: {str(error).rstrip('.')}: {MERGE}"
            ) from error

    def request(self) -> Any:
        """The ``LoRARequest`` that each request to vLLM contains."""
        from vllm.lora.request import LoRARequest

        return LoRARequest(self.lora.hub_id, REQUEST_ID, str(self.folder))
