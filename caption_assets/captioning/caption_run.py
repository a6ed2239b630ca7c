"""The captioning run: its inputs, outputs and limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import uuid4

from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.stages import Stage
from caption_assets.store.failure_limits import FailureLimits
from caption_assets.store.root import Root

CHECKPOINT_ROWS = 256
CHECKPOINT_SECONDS = 30.0
LEASE_SECONDS = 120.0
MAX_ATTEMPTS = 8


@dataclass(frozen=True, slots=True)
class CaptionRun:
    """Inputs, outputs and limits of one run of ``caption_shards``.

    Raises:
        ValueError: if a stage is not in the recipe.
    """

    root: Root
    """Root of the manifests, tables, checkpoints and leases."""
    source: Root
    """Root of the clips."""
    recipe: Recipe
    stages: tuple[Stage, ...] = ()
    """Stages to caption, in the recipe's order; by default all of its model. The others that they need are read from
    the root."""
    engine_settings: str = ""
    """Identity of the engine's settings; see ``EngineConfig``."""
    weights_version: str | None = None
    """Data version of the weights, which is stored with the tables; None if it is not known."""
    previews: bool = False
    """Whether to store a preview of each window."""
    owner: str = field(default_factory=lambda: f"run {uuid4().hex}")
    """Owner of the leases. All attempts of a run have the same owner, so that a retry gets its shards immediately."""
    checkpoint_rows: int = CHECKPOINT_ROWS
    """Number of finished windows after which a shard gets a checkpoint."""
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    """Maximum time between a finished window and its checkpoint, in seconds."""
    lease_seconds: float = LEASE_SECONDS
    """Time after which a lease that is not renewed expires, in seconds. Another run may then acquire the shard."""
    limits: FailureLimits = field(default_factory=FailureLimits)
    """Limits on the failures of the tables that a shard's captions are made from. Past them, the shard fails."""
    max_attempts: int = MAX_ATTEMPTS
    """Number of requests, over all runs, after which a failed caption is not retried. A run makes up to four requests,
    and more if reasoning is cut off."""

    def __post_init__(self) -> None:
        if not self.stages:
            object.__setattr__(self, "stages", self.recipe.own_stages)
        if unknown := [stage.name for stage in self.stages if stage not in self.recipe.stages]:
            raise ValueError(f"the recipe has no stage {unknown[0]} with this prompt and output: take the recipe's own")
        if others := [stage.name for stage in self.stages if not self.recipe.answers(stage)]:
            raise ValueError(
                f"{self.recipe.variant.hub_id} does not answer {others[0]}: take its model's recipe from Recipe.steps"
            )
