"""The captions under review: one row for each window and stage, read from the stored tables of a shard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from caption_assets.checks.stored_tables import StoredShard, StoredTable
from caption_assets.store.caption_columns import PROBABILITIES
from caption_assets.store.corrections import Correction, Decision
from caption_assets.store.previews import StoredPreviews
from caption_assets.store.tables import CaptionRow, ManifestRow, extent

RowId = tuple[str, str, str]
"""Shard, stage and window id."""


class State(StrEnum):
    """What people decided on a caption."""

    UNDECIDED = "undecided"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    REWRITTEN = "rewritten"
    OUTDATED = "outdated"
    """The model's text has changed since the decision."""


_STATES = {
    Decision.ACCEPT: State.ACCEPTED,
    Decision.REJECT: State.REJECTED,
    Decision.REWRITE: State.REWRITTEN,
}


class Kind(StrEnum):
    """The kind of a stage's captions."""

    TEXT = "text"
    JSON = "json"
    CHOICE = "choice"

    @classmethod
    def of(cls, table: StoredTable) -> Kind:
        """The kind of a table's captions."""
        if table.has_choices:
            return cls.CHOICE
        return cls.JSON if table.is_json else cls.TEXT


@dataclass(frozen=True, slots=True)
class ReviewRow:
    """The caption of a window and stage."""

    shard: str
    stage: str
    number: int
    """Position in the order of the shards, their manifests and their stages."""
    window: ManifestRow
    caption: CaptionRow
    """Without the columns that a review does not show, which are long."""
    kind: Kind
    choices: Sequence[str]
    """The choices of the stage; empty for text and JSON."""
    words: int
    """Number of words of the caption; 0 if there is none."""
    score: float | None
    """Lowest probability of a good answer among the window's stages with scores; None if there are none."""
    preview: tuple[str, int] | None
    """Path of the window's preview and its number of frames; None if there is none."""

    @property
    def id(self) -> RowId:
        """The row's identity under review."""
        return self.shard, self.stage, self.window.window_id

    def state(self, correction: Correction | None) -> State:
        """The state of the row, from the correction that holds."""
        if correction is None:
            return State.UNDECIDED
        return State.OUTDATED if correction.is_outdated(self.caption) else _STATES[correction.decision]


def read_rows(stored: StoredShard, stages: Sequence[str], first_number: int = 0) -> list[ReviewRow]:
    """The captions of a shard, window by window.

    Unreadable clips have no windows, and are left out.

    Args:
        stored: the shard's tables.
        stages: names of stages whose rows of a window come first, in this order.
        first_number: number of the first row.

    Raises:
        TableError: if a table is missing or damaged.
        StoreError: if the root cannot be read.
    """
    tables = stored.caption_tables()
    tables = {stage: tables[stage] for stage in (*stages, *tables) if stage in tables}
    kinds = {stage: Kind.of(table) for stage, table in tables.items()}
    choices = {stage: _choices(table) for stage, table in tables.items()}
    good_choices = {stage: choice for stage, table in tables.items() if (choice := table.score_choice)}
    rows = {stage: {extent(row): row for row in table.rows} for stage, table in tables.items()}
    words = {
        stage: {extent(one.row): len(one.words) for one in table.captions} if kinds[stage] is not Kind.CHOICE else {}
        for stage, table in tables.items()
    }
    previews = StoredPreviews(stored.root, stored.shard)
    found: list[ReviewRow] = []
    for window in stored.manifest:
        if window.window_index is None:
            continue
        key = extent(window)
        captions = {stage: rows[stage][key] for stage in tables if key in rows[stage]}
        score = _score(good_choices, captions)
        for stage, caption in captions.items():
            found.append(
                ReviewRow(
                    shard=stored.shard,
                    stage=stage,
                    number=first_number + len(found),
                    window=window,
                    caption=_shown(caption),
                    kind=kinds[stage],
                    choices=choices[stage],
                    words=words[stage].get(key, 0),
                    score=score,
                    preview=previews.locate(window.window_id),
                )
            )
    return found


def _choices(table: StoredTable) -> tuple[str, ...]:
    return tuple(field.name for field in table.schema.field(PROBABILITIES).type) if table.has_choices else ()


def _score(good_choices: Mapping[str, str], captions: Mapping[str, CaptionRow]) -> float | None:
    """The lowest score of a window."""
    answers = [(captions[stage], choice) for stage, choice in good_choices.items() if stage in captions]
    scores = [(row.probabilities or {}).get(choice) for row, choice in answers]
    return min((score for score in scores if score is not None), default=None)


def _shown(row: CaptionRow) -> CaptionRow:
    """A row with the columns that a review shows. ``dataclasses.replace`` takes three times as long."""
    return CaptionRow(
        clip_key=row.clip_key,
        window_index=row.window_index,
        window_id=row.window_id,
        start_seconds=row.start_seconds,
        end_seconds=row.end_seconds,
        status=row.status,
        error_kind=row.error_kind,
        error=row.error,
        caption=row.caption,
        finish_reason=row.finish_reason,
        flags=row.flags,
        reductions=row.reductions,
        model=row.model,
        prompt_name=row.prompt_name,
        output_tokens=row.output_tokens,
        fingerprint=row.fingerprint,
        probabilities=row.probabilities,
    )
