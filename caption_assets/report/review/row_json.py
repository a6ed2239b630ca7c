"""The JSON of a row under review, as the page shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from caption_assets.report.review.desk import ReviewDesk
from caption_assets.report.review.query import Selection
from caption_assets.report.review.rows import ReviewRow, State
from caption_assets.report.sides import nonempty, position, stage_heading
from caption_assets.report.text_diff import diff_texts
from caption_assets.store.corrections import Correction, Decision


def row_json(desk: ReviewDesk, row: ReviewRow) -> dict[str, Any]:
    """A row with its decisions, and the captions of the window's other stages."""
    window, caption = row.window, row.caption
    clip = f"{row.shard}/{window.window_id}"
    others = [other for other in desk.stages_of(row.shard, window.window_id) if other.stage != row.stage]
    correction = desk.correction(row)
    return {
        **_caption_json(row),
        "shard": row.shard,
        "window_id": window.window_id,
        "name": window.clip_key,
        "position": position(window.window_index, window.start_seconds, window.end_seconds),
        "start": window.start_seconds,
        "end": window.end_seconds,
        "fps": window.clip_fps,
        "codec": window.codec,
        "has_audio": bool(window.has_audio),
        "options": row.choices,
        "score": row.score,
        "words": row.words,
        "state": desk.state(row),
        "correction": correction and correction_json(row, correction),
        "history": [_history_json(one) for one in reversed(desk.history(row))],
        "others": [_caption_json(other) for other in others],
        "video": f"api/video/{clip}",
        "preview": row.preview and f"api/preview/{clip}",
        "preview_frames": row.preview and row.preview[1],
        "properties": nonempty(
            (
                ("Model", caption.model),
                ("Prompt", caption.prompt_name),
                ("Finish reason", caption.finish_reason),
                ("Output tokens", caption.output_tokens),
                ("Clip", window.width and f"{window.width} \N{MULTIPLICATION SIGN} {window.height}, {window.codec}"),
                ("Window id", window.window_id),
            )
        ),
    }


def correction_json(row: ReviewRow, correction: Correction) -> dict[str, Any]:
    """A correction that holds, with the difference of its text from the model's."""
    found: dict[str, Any] = {**_history_json(correction), "caption": correction.caption, "diff": None, "before": None}
    model, before = row.caption.caption or "", correction.reviewed_caption or ""
    if correction.caption is not None:
        found["diff"] = diff_json(model, correction.caption)
    if correction.is_outdated(row.caption):
        found["before"] = diff_json(before, model)
    return found


def diff_json(old: str, new: str) -> dict[str, Any]:
    """The difference of two texts, in segments as in ``TextDiff``."""
    diff = diff_texts(old, new)
    return {"old": diff.old, "new": diff.new}


def progress_json(selection: Selection) -> dict[str, int]:
    """Number of rows in each state, and of all of them."""
    states: Mapping[State, int] = selection.states
    return {**{state.value: states.get(state, 0) for state in State}, "total": len(selection.sample)}


def _caption_json(row: ReviewRow) -> dict[str, Any]:
    caption = row.caption
    return {
        "id": "/".join(row.id),
        "stage": row.stage,
        "stage_label": stage_heading(row.stage),
        "kind": row.kind,
        "text": caption.caption,
        "missing": None if caption.caption is not None else f"{caption.error_kind}: {caption.error}",
        "choices": list((caption.probabilities or {}).items()),
        "flags": list(caption.flags),
        "notes": list(caption.reductions),
    }


def _history_json(correction: Correction) -> dict[str, Any]:
    return {
        "id": correction.correction_id,
        "decision": correction.decision,
        "reviewer": correction.reviewer,
        "decided_at": correction.decided_at.isoformat(),
        "reason": correction.reason,
        "is_undo": correction.decision is Decision.UNDO,
    }
