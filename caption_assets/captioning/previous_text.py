"""The previous text of a row: the caption that it replaced, which is kept for comparison."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace

from caption_assets.captioning.recipe import CLIP_PROMPT
from caption_assets.store.tables import CaptionFile, CaptionRow, PreviousText, extent

PREVIOUS_PROMPTS = "previous_prompts"
"""Key of a caption table's file metadata: the prompts of its previous texts, as a JSON object by hash."""


def with_previous(
    rows: Iterable[CaptionRow], published: Iterable[CaptionRow], score: str | None = None
) -> list[CaptionRow]:
    """Rows with the previous texts that they get when they replace a published table.

    - A row that replaces another caption of its window gets that caption, also if both texts are equal, or if it has no
      caption itself.
    - A row that is reused, or that replaces a row without a caption, keeps the previous text of the published row.

    So a row has at most one previous text. It comes from a published table, never from a checkpoint: a run that was
    interrupted leaves none.

    Args:
        rows: the rows to publish.
        published: the rows of the published table. A row belongs to the same window if clip content and time range are
            the same.
        score: the choice whose probability is the score, if the stage has one.
    """
    by_window = {extent(row): row for row in published}
    return [_with_previous(row, by_window.get(extent(row)), score) for row in rows]


def _with_previous(row: CaptionRow, published: CaptionRow | None, score: str | None) -> CaptionRow:
    if published is None:
        return row
    is_reused = (row.fingerprint, row.caption) == (published.fingerprint, published.caption)
    if is_reused or published.caption is None:
        return replace(row, previous=published.previous)
    return replace(row, previous=_previous_text(published, published.caption, score))


def _previous_text(row: CaptionRow, caption: str, score: str | None) -> PreviousText:
    probabilities = row.probabilities or {}
    return PreviousText(
        caption=caption,
        flags=row.flags,
        model=row.model,
        revision=row.revision,
        lora=row.lora,
        lora_revision=row.lora_revision,
        prompt_name=row.prompt_name,
        prompt_hash=row.prompt_hash,
        sampling=row.sampling,
        fingerprint=row.fingerprint,
        probability=probabilities.get(caption),
        score=probabilities.get(score) if score is not None else None,
    )


def previous_prompts(rows: Sequence[CaptionRow], published: CaptionFile, prompt: str | None) -> dict[str, str]:
    """The prompts of the previous texts, as file metadata; empty if none is known. Clips' own prompts are not kept.

    Args:
        rows: the rows to publish, with their previous texts.
        published: the published table.
        prompt: the prompt of the published table.
    """
    found: dict[str, str] = json.loads(published.metadata.get(PREVIOUS_PROMPTS, "{}"))
    hashes = {row.prompt_hash for row in published.rows if row.prompt_hash and row.prompt_name != CLIP_PROMPT}
    if prompt is not None:
        found |= dict.fromkeys(hashes, prompt)
    wanted = {row.previous.prompt_hash for row in rows if row.previous}
    kept = {text_hash: text for text_hash, text in sorted(found.items()) if text_hash in wanted}
    return {PREVIOUS_PROMPTS: json.dumps(kept)} if kept else {}
