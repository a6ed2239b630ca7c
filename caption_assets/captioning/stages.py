"""The stages of a recipe: each captions every window once, and has its own prompt and table."""

from __future__ import annotations

from dataclasses import dataclass

from caption_assets.store.tables import CLIP_MANIFEST


@dataclass(frozen=True, slots=True)
class Stage:
    """One caption of each window."""

    name: str
    """The name of the stage's asset, table and folder."""
    number: int
    """Position in the recipe, from 1."""
    needs: tuple[str, ...] = ()
    """Names of the stages whose captions are in the prompt."""


STAGE1 = Stage("stage1_captions", 1)
STAGE2 = Stage("stage2_captions", 2, needs=(STAGE1.name,))
STAGES = (STAGE1, STAGE2)
"""The default stages, in order."""
TABLE_NAMES = (CLIP_MANIFEST, *(stage.name for stage in STAGES))
"""Names of the default recipe's tables, in order: each is made from the previous ones."""
