"""The captions under review: one row for each window and stage, read from the stored tables of a shard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from caption_assets.checks.stored_tables import StoredShard, StoredTable
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
    rows = {stage: {extent(row): row for row in table.rows} for stage, table in tables.items()}
    words = {
        stage: {extent(one.row): len(one.words) for one in table.captions} if Kind.of(table) is not Kind.CHOICE else {}
        for stage, table in tables.items()
    }
    previews = StoredPreviews(stored.root, stored.shard)
    found: list[ReviewRow] = []
    for window in stored.manifest:
        if window.window_index is None:
            continue
        key = extent(window)
        captions = {stage: rows[stage][key] for stage in tables if key in rows[stage]}
        score = _score(tables, captions)
        for stage, caption in captions.items():
            found.append(
                ReviewRow(
                    shard=stored.shard,
                    stage=stage,
                    number=first_number + len(found),
                    window=window,
                    caption=replace(caption, frame_indices=None, sampling=None, upstream_fingerprints=None),
                    kind=Kind.of(tables[stage]),
                    words=words[stage].get(key, 0),
                    score=score,
                    preview=previews.locate(window.window_id),
                )
            )
    return found


def _score(tables: Mapping[str, StoredTable], captions: Mapping[str, CaptionRow]) -> float | None:
    """The lowest score of a window."""
    scores = [
        probability
        for stage, row in captions.items()
        if (choice := tables[stage].score_choice) and (probability := (row.probabilities or {}).get(choice)) is not None
    ]
    return min(scores, default=None)
