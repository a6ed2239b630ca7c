"""A captioning job: the tables to make of each shard, and its checkpoints, lease and attempts."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import uuid4

from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.stages import STAGES, Stage
from caption_assets.store.root import Root

CHECKPOINT_ROWS = 256
CHECKPOINT_SECONDS = 30.0
LEASE_SECONDS = 120.0
MAX_ATTEMPTS = 8


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be made of each shard."""

    root: Root
    source: Root
    recipe: Recipe
    stages: tuple[Stage, ...] = STAGES
    """Stages to caption, in the recipe's order. A stage that is needed and not among them is read from the root."""
    engine_settings: str = ""
    """Identity of the engine's settings; see ``EngineConfig``."""
    weights_version: str | None = None
    """Data version of the weights, to be stored with the tables; None if it is not known."""
    previews: bool = False
    """Whether to keep a preview of each window."""
    owner: str = field(default_factory=lambda: f"run {uuid4().hex}")
    """Of all tries of one run the same: each may take over a shard from the last at once."""
    checkpoint_rows: int = CHECKPOINT_ROWS
    """Finished windows of a shard that make a checkpoint due."""
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    """Longest time that a finished window waits for its checkpoint."""
    lease_seconds: float = LEASE_SECONDS
    """Time after which another run may take over a shard of which nothing was heard."""
    max_attempts: int = MAX_ATTEMPTS
    """Requests for a caption, over all runs, after which its row stays failed; one run makes four of them."""
