"""The decisions in a JSON export of Label Studio, as corrections."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from caption_assets.interchange.label_studio import (
    InterchangeError,
    caption_control,
    decision_control,
    reason_control,
)
from caption_assets.store.corrections import Correction, Decision, read_corrections, save_corrections
from caption_assets.store.root import Root
from caption_assets.store.tables import CLIP_MANIFEST, TableError, stored_shards


def read_decisions(file: Path) -> Mapping[str, Sequence[Correction]]:
    """The corrections in a JSON export, by shard.

    An annotation that was skipped decides nothing. A text that differs from the one that was shown is a rewrite, unless
    it was rejected. The id of a correction derives from its annotation and its content, so that importing an export
    again adds nothing, and importing a later one adds what was changed.

    Raises:
        InterchangeError: if it is not the export of tasks that ``caption-assets label-studio export`` wrote.
    """
    try:
        exported = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise InterchangeError(
            f"cannot read {file} ({error}): export the project as JSON, and give that file"
        ) from None
    if not isinstance(exported, list):
        raise InterchangeError(f"{file} is not a list of tasks: export the project in the format JSON, not JSON-MIN")
    found = defaultdict[str, list[Correction]](list)
    for task in exported:
        try:
            for correction in _corrections(task):
                found[task["data"]["shard"]].append(correction)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            number = task.get("id") if isinstance(task, dict) else task
            raise InterchangeError(
                f"task {number!r} of {file} is not one of `caption-assets label-studio export`, or not exported in the "
                f"format JSON ({type(error).__name__}: {error})"
            ) from None
    return found


def _corrections(task: Mapping[str, Any]) -> Iterator[Correction]:
    data = task["data"]
    for annotation in task["annotations"]:
        if annotation.get("was_cancelled"):
            continue
        answers = {region["from_name"]: _answer(region["value"]) for region in annotation["result"]}
        for stage, model_text in data["captions"].items():
            if decided := _decide(stage, model_text, data["shown"][stage], answers):
                decision, caption, reason = decided
                yield Correction(
                    correction_id=_identity(task, annotation, stage, *decided),
                    clip_key=data["clip_key"],
                    window_index=data["window_index"],
                    window_id=data["window_id"],
                    start_seconds=float(data["start_seconds"]),
                    end_seconds=float(data["end_seconds"]),
                    stage=stage,
                    decision=decision,
                    reviewer=_reviewer(annotation["completed_by"]),
                    decided_at=_time(annotation),
                    reviewed_caption=model_text,
                    fingerprint=data["fingerprints"][stage],
                    caption=caption,
                    reason=reason,
                )


def _answer(value: Mapping[str, Any]) -> str:
    """The text of a region: an edited text, whose lines may be several submissions, or a choice."""
    found = value["text"] if "text" in value else value["choices"]
    return found if isinstance(found, str) else "\n".join(found)


def _decide(
    stage: str, model_text: str | None, shown: str | None, answers: Mapping[str, str]
) -> tuple[Decision, str | None, str | None] | None:
    """Decision, text and reason; None if the person decided nothing on this stage.

    The text that was shown may be an earlier rewrite. To accept it is to write it again.
    """
    decision = answers.get(decision_control(stage))
    if decision == Decision.REJECT:
        return Decision.REJECT, None, answers.get(reason_control(stage)) or None
    text, shown = answers.get(caption_control(stage), "").strip(), (shown or "").strip()
    if text and text != shown:
        return Decision.REWRITE, text, None
    if decision != Decision.ACCEPT:
        return None
    return (Decision.ACCEPT, None, None) if shown == (model_text or "").strip() else (Decision.REWRITE, shown, None)


def save_decisions(root: Root, found: Mapping[str, Sequence[Correction]]) -> Mapping[str, int]:
    """Store the corrections that a root lacks, and return their number by shard.

    Raises:
        TableError: if the root has no tables of a shard, or a file is damaged.
        StoreError: if the root cannot be read or written.
    """
    known = stored_shards(root, CLIP_MANIFEST)
    if unknown := sorted(found.keys() - known):
        raise TableError(
            f"{root.url} has no tables of shard {unknown[0]!r}: check CAPTION_ROOT, or caption the shard first"
        )
    new = {}
    for shard, corrections in found.items():
        present = {one.correction_id for one in read_corrections(root, shard).history}
        added = [one for one in corrections if one.correction_id not in present]
        save_corrections(root, shard, added)
        new[shard] = len(added)
    return new


def _identity(task: Mapping[str, Any], annotation: Mapping[str, Any], *decided: object) -> str:
    names = (
        task.get("project"),
        task.get("id"),
        annotation["id"],
        task["data"]["window_id"],
        _time(annotation),
        *decided,
    )
    return sha256(json.dumps([str(name) for name in names]).encode()).hexdigest()[:32]


def _reviewer(completed_by: object) -> str:
    """The e-mail address of a user, or the user's number, which is all that some exports have."""
    if isinstance(completed_by, dict):
        return str(completed_by.get("email") or completed_by.get("username") or _reviewer(completed_by["id"]))
    return f"Label Studio user {completed_by}"


def _time(annotation: Mapping[str, Any]) -> datetime:
    found = datetime.fromisoformat(annotation.get("updated_at") or annotation["created_at"])
    return found if found.tzinfo else found.replace(tzinfo=UTC)
