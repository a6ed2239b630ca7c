"""The rows of caption tables: those not yet filled in, and those of windows that cannot be captioned."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from caption_assets.captioning.prompts import text_hash
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.task import Captioned, Task
from caption_assets.store.tables import CaptionRow, ManifestRow, Status


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a window gets no caption."""

    kind: str
    message: str
    reduced: bool = False
    """Whether it is for lack of context: with more of it the window is asked again."""


def blank_row(
    recipe: Recipe,
    stage: int,
    window: ManifestRow,
    stage1: CaptionRow | None = None,
    *,
    reduced: bool = False,
    cut_off: bool = False,
) -> CaptionRow:
    """A failed row, to be filled in.

    Args:
        recipe: what captions are made with.
        stage: 1 or 2.
        window: what the row is of.
        stage1: for stage 2, the row whose caption is in the prompt; None where there is none.
        reduced: whether the context has no room for the whole window; see ``Recipe.fingerprint``.
        cut_off: whether an answer reached the output limit.
    """
    prompt = recipe.prompt_for(window)
    known = window.status is Status.OK and (stage == 1 or stage1 is not None)
    said = stage1.caption if stage1 else None
    return CaptionRow(
        clip_key=window.clip_key,
        window_index=window.window_index,
        window_id=window.window_id,
        start_seconds=window.start_seconds,
        end_seconds=window.end_seconds,
        status=Status.FAILED,
        model=recipe.variant.hub_id,
        revision=recipe.variant.revision,
        lora=recipe.lora.hub_id if recipe.lora else None,
        lora_revision=recipe.lora.revision if recipe.lora else None,
        prompt_name=prompt.name,
        prompt_hash=text_hash(prompt.stage1 if stage == 1 else prompt.stage2),
        sampling=asdict(recipe.generation),
        fingerprint=recipe.fingerprint(stage, window, said, reduced=reduced, cut_off=cut_off) if known else None,
        stage1_fingerprint=stage1.fingerprint if stage1 else None,
    )


def stage1_failed(recipe: Recipe, window: ManifestRow) -> CaptionRow:
    """The stage-2 row of a window that stage 1 gave no caption."""
    return replace(
        blank_row(recipe, 2, window),
        error_kind="stage1_failed",
        error="stage 1 has no caption for this window: see its row in stage1_captions",
    )


def uncaptioned(recipe: Recipe, task: Task, problem: Problem, *, with_stage2: bool) -> Captioned:
    """The rows of a task whose frames cannot be had: the first stage that is still to be made fails of it."""

    def failed(stage: int, row: CaptionRow) -> CaptionRow:
        tried = task.tried[stage - 1] + 1 if row.fingerprint else 0
        return replace(row, error_kind=problem.kind, error=problem.message, attempts=tried)

    stage1 = task.stage1 or failed(1, blank_row(recipe, 1, task.window, reduced=problem.reduced))
    if not with_stage2:
        return Captioned(task, stage1, None)
    if stage1.caption is None:
        return Captioned(task, stage1, stage1_failed(recipe, task.window))
    return Captioned(task, stage1, failed(2, blank_row(recipe, 2, task.window, stage1, reduced=problem.reduced)))
