"""Sides of a page's row: a caption each, with its provenance."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from caption_assets.checks.stored_tables import StoredTable
from caption_assets.report.page import Properties, Side, SideCorrection
from caption_assets.report.text_diff import DiffSegments, diff_texts
from caption_assets.store.corrections import Correction, Decision
from caption_assets.store.tables import CaptionRow

PAST = {Decision.ACCEPT: "accepted", Decision.REJECT: "rejected", Decision.REWRITE: "rewritten"}
"""What became of a caption by a decision."""
SHOWN_INDICES = 40
"""Maximum number of frame indices in a list; a long window has hundreds."""
OUTDATED = "outdated"
"""Note on a caption that was made from another caption than the one beside it."""


class SharedProvenance:
    """The provenance that captions of a page have in common. The page stores each distinct one once.

    Args:
        prompts: for each column of the page, its table's instruction.
    """

    def __init__(self, prompts: Sequence[str | None]) -> None:
        self.found: dict[Properties, int] = {}
        """Index of each distinct provenance."""
        self._prompts = prompts

    def index(self, column: int, row: CaptionRow, prompt: str | None = None) -> int:
        """The index of a row's provenance.

        Args:
            column: column of the page.
            row: the caption.
            prompt: the clip's own instruction, if it has one.
        """
        properties = (
            ("Model", row.model),
            ("Revision", row.revision),
            ("LoRA adapter", row.lora and f"{row.lora} @ {row.lora_revision}"),
            ("Sampling", _sampling(row.sampling or {})),
            ("Prompt", f"{row.prompt_name}: {prompt or self._prompts[column] or 'unknown'}"),
        )
        return self.found.setdefault(nonempty(properties), len(self.found))


def stage_label(stage: str) -> str:
    """A stage's name for readers: ``stage 1`` for ``stage1_captions``."""
    words = stage.removesuffix("_captions").replace("_", " ")
    return re.sub(r"(?<=[a-z])(?=\d)", " ", words)


def stage_heading(stage: str) -> str:
    """A stage's name for readers, as a heading."""
    label = stage_label(stage)
    return label[:1].upper() + label[1:]


def build_side(
    table: StoredTable,
    row: CaptionRow,
    text: DiffSegments | None,
    provenance: int,
    notes: Sequence[str] = (),
    correction: Correction | None = None,
) -> Side:
    """Build the side of a row.

    Args:
        table: the caption's table.
        row: the caption.
        text: its text in segments; None if there is no other text to compare with.
        provenance: index of its shared provenance.
        notes: notes besides the row's reductions.
        correction: a person's correction of the caption. A rewrite takes the place of the text.
    """
    rewrite = correction.caption if correction else None
    if rewrite is not None:
        text = diff_texts(row.caption, rewrite).new if row.caption and not table.has_choices else (rewrite,)
    probabilities = row.probabilities or {}
    return Side(
        text=text or (row.caption or "",),
        missing=None if row.caption is not None or rewrite is not None else f"{row.error_kind}: {row.error}",
        is_json=table.is_json,
        choices=tuple(probabilities.items()),
        score=probabilities.get(table.score_choice or ""),
        flags=() if rewrite is not None else tuple(row.flags),
        notes=(*notes, *row.reductions),
        properties=_properties(row),
        provenance=provenance,
        correction=build_correction(row, correction) if correction else None,
    )


def build_correction(row: CaptionRow, correction: Correction) -> SideCorrection:
    """Build the correction of a side from its row."""
    is_outdated = correction.is_outdated(row)
    return SideCorrection(
        decision=PAST[correction.decision],
        reviewer=correction.reviewer,
        decided_at=decision_time(correction),
        reason=correction.reason,
        model_text=_removed(row.caption, correction.caption) if correction.caption is not None else None,
        reviewed_text=_removed(correction.reviewed_caption, row.caption) if is_outdated else None,
        is_outdated=is_outdated,
    )


def decision_time(correction: Correction) -> str:
    """The time of a decision, for readers."""
    return f"{correction.decided_at:%Y-%m-%d %H:%M} UTC"


def _removed(old: str | None, new: str | None) -> DiffSegments | None:
    """A text with the segments that another one lacks."""
    return None if old is None else diff_texts(old, new).old if new is not None else (old,)


def position(window_index: int | None, start_seconds: float | None, end_seconds: float | None) -> str:
    """A window's number and time range within its clip; an unreadable clip has none."""
    if window_index is None or start_seconds is None or end_seconds is None:
        return "no window"
    return f"window {window_index}, {_time(start_seconds)} to {_time(end_seconds)}"


def nonempty(properties: Sequence[tuple[str, object]]) -> tuple[tuple[str, str], ...]:
    """The properties whose value is neither None nor empty."""
    return tuple((label, str(value)) for label, value in properties if value)


def _properties(row: CaptionRow) -> Properties:
    indices = [str(index) for index in row.frame_indices or ()]
    if len(indices) > SHOWN_INDICES:
        indices[SHOWN_INDICES - 2 : -1] = ["\N{HORIZONTAL ELLIPSIS}"]
    return nonempty(
        (
            ("Frames", row.frame_indices and f"{len(row.frame_indices)}: {', '.join(indices)}"),
            ("Frame rate", row.frame_fps and f"{row.frame_fps:.3g} fps"),
            ("Frame size", row.frame_width and f"{row.frame_width} \N{MULTIPLICATION SIGN} {row.frame_height} pixels"),
            ("Prompt tokens", row.prompt_tokens and f"{row.prompt_tokens:,} ({row.cached_tokens or 0:,} cached)"),
            ("Output tokens", row.output_tokens and f"{row.output_tokens:,}"),
            ("Finish reason", row.finish_reason),
            ("Requests", row.attempts and str(row.attempts)),
        )
    )


def _sampling(sampling: Mapping[str, float | None]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in sampling.items() if value is not None)


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds, 1), 60)
    return f"{minutes:.0f}:{rest:04.1f}"
