"""The review desk: the captions under review with people's decisions. It writes corrections and nothing else."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from threading import Lock
from time import monotonic

from caption_assets.errors import CaptionAssetsError
from caption_assets.report.review.query import ReviewQuery, Selection, select
from caption_assets.report.review.rows import Kind, ReviewRow, RowId, State
from caption_assets.store.corrections import Correction, CorrectionLog, Corrections, Decision, save_correction
from caption_assets.store.failure import StoreError
from caption_assets.store.root import Root
from caption_assets.store.table_file import TableError

REFRESH_SECONDS = 2.0
"""Minimum time between two readings of all shards' corrections. Each lists a folder per shard."""
PARALLEL_READS = 16
"""Number of shards whose corrections are read concurrently: in object storage it is mostly waiting."""

Target = tuple[str, tuple[str, float | None, float | None, str]]
"""Shard, and ``Correction.target``."""


class DecisionError(CaptionAssetsError):
    """A decision that a caption does not permit."""


class UnknownRow(CaptionAssetsError):
    """A row that is not under review."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision as a reviewer sends it."""

    correction_id: str
    """32 hex digits, made by the page: a save that is repeated, because its response was lost, has no effect."""
    row: RowId
    decision: Decision
    caption: str | None = None
    """The new text of a rewrite."""
    reason: str | None = None
    """Reason of a rejection."""
    undoes: str | None = None
    """Id of the correction that an undo withdraws."""
    seen: str | None = None
    """Id of the correction that the reviewer saw on the row."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A stored decision."""

    row: ReviewRow
    meanwhile: Correction | None
    """A correction of another reviewer that held, and that this one had not seen."""


class ReviewDesk:
    """The captions under review with the decisions on them. Safe to use from several threads.

    Args:
        root: the root with the corrections.
        rows: the captions.
        reviewer: name of the person at this desk.
        refresh_seconds: see ``REFRESH_SECONDS``.

    Raises:
        TableError: if a file of corrections is damaged.
        StoreError: if the root cannot be read.
    """

    def __init__(
        self, root: Root, rows: Sequence[ReviewRow], reviewer: str, refresh_seconds: float = REFRESH_SECONDS
    ) -> None:
        self.root = root
        self.rows = rows
        self.reviewer = reviewer
        self.shards = list(dict.fromkeys(row.shard for row in rows))
        self._refresh_seconds = refresh_seconds
        self._by_id = {row.id: row for row in rows}
        self._by_target = {(row.shard, _target(row)): row for row in rows}
        windows: dict[tuple[str, str], list[ReviewRow]] = defaultdict(list)
        for row in rows:
            windows[row.shard, row.window.window_id].append(row)
        self._windows: Mapping[tuple[str, str], Sequence[ReviewRow]] = windows
        self._logs = {shard: CorrectionLog(root, shard) for shard in self.shards}
        self._known: dict[str, dict[str, Correction]] = {shard: {} for shard in self.shards}
        self._corrections = {shard: Corrections(()) for shard in self.shards}
        self._histories: dict[Target, list[Correction]] = {}
        self._arrivals: list[ReviewRow] = []
        self._lock = Lock()
        self._refreshed = -refresh_seconds
        self.refresh()

    def refresh(self) -> None:
        """Read the decisions that other reviewers have stored, at most once per ``refresh_seconds``.

        Raises:
            TableError: if a file of corrections is damaged.
            StoreError: if the root cannot be read.
        """
        if monotonic() - self._refreshed < self._refresh_seconds:
            return
        self._refreshed = monotonic()
        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            list(pool.map(self._refresh_shard, self.shards))

    def find(self, row: RowId) -> ReviewRow:
        """A row under review.

        Raises:
            UnknownRow: if there is none.
        """
        if row not in self._by_id:
            raise UnknownRow(f"{'/'.join(row)} is not under review: open the review of its shard, or reload the page")
        return self._by_id[row]

    def stages_of(self, shard: str, window_id: str) -> Sequence[ReviewRow]:
        """The rows of a window, one a stage; empty if the window is not under review."""
        return self._windows.get((shard, window_id), ())

    def correction(self, row: ReviewRow) -> Correction | None:
        """The correction of a row that holds, if there is one."""
        return self._corrections[row.shard].find(row.caption, row.stage)

    def state(self, row: ReviewRow) -> State:
        """The state of a row."""
        return row.state(self.correction(row))

    def history(self, row: ReviewRow) -> Sequence[Correction]:
        """All corrections of a row, the oldest first, with those that no longer hold."""
        return self._histories.get((row.shard, _target(row)), ())

    def select(self, query: ReviewQuery) -> Selection:
        """Select rows, in the present state of corrections."""
        return select(self.rows, query, self.state)

    @property
    def serial(self) -> int:
        """Number of changes so far."""
        return len(self._arrivals)

    def changed_since(self, serial: int) -> Sequence[ReviewRow]:
        """The rows with decisions that arrived after the first ``serial`` changes."""
        return list({row.id: row for row in self._arrivals[serial:]}.values())

    def decide(self, verdict: Verdict) -> Saved:
        """Store a decision. It holds even if another reviewer's machine has a fast clock.

        Raises:
            UnknownRow: if the row is not under review.
            DecisionError: if the caption does not permit the decision.
            CorrectionError: if the decision contradicts itself.
            StoreError: if it cannot be stored.
        """
        row = self.find(verdict.row)
        if verdict.correction_id in self._known[row.shard]:
            return Saved(row, None)
        self._check(row, verdict)
        with suppress(StoreError, TableError):  # storing the decision matters more than others' decisions
            self._refresh_shard(row.shard)
        previous = self.correction(row)
        made = Correction.of(
            row.caption,
            row.stage,
            verdict.decision,
            self.reviewer,
            caption=verdict.caption,
            reason=verdict.reason,
            undoes=verdict.undoes,
        )
        made = replace(made, correction_id=verdict.correction_id, decided_at=self._next_time(row, made.decided_at))
        save_correction(self.root, row.shard, made)
        self._add(row.shard, [made])
        unseen = previous is not None and previous.correction_id not in (verdict.seen, verdict.undoes)
        return Saved(row, previous if unseen else None)

    def _check(self, row: ReviewRow, verdict: Verdict) -> None:
        if verdict.decision is Decision.ACCEPT and row.caption.caption is None:
            raise DecisionError("there is no caption to accept: rewrite it, or reject the window")
        if verdict.decision is Decision.UNDO:
            if verdict.undoes not in {one.correction_id for one in self.history(row)}:
                raise DecisionError(f"the row has no decision {verdict.undoes!r} to undo: reload the page")
        elif verdict.decision is Decision.REWRITE and verdict.caption is not None:
            _check_text(row, verdict.caption)

    def _next_time(self, row: ReviewRow, now: datetime) -> datetime:
        """A time after all decisions on a row."""
        history = self.history(row)
        return max(now, history[-1].decided_at + timedelta(microseconds=1)) if history else now

    def _refresh_shard(self, shard: str) -> None:
        self._add(shard, self._logs[shard].read().history)

    def _add(self, shard: str, corrections: Iterable[Correction]) -> None:
        """Add those corrections of a shard that are not known yet."""
        with self._lock:
            known = self._known[shard]
            new = [one for one in corrections if one.correction_id not in known]
            if not new:
                return
            known.update((one.correction_id, one) for one in new)
            self._corrections[shard] = Corrections(known.values())
            for one in new:
                target = shard, one.target
                history = [*self._histories.get(target, ()), one]
                self._histories[target] = sorted(history, key=lambda each: (each.decided_at, each.correction_id))
                if target in self._by_target:
                    self._arrivals.append(self._by_target[target])


def _target(row: ReviewRow) -> tuple[str, float | None, float | None, str]:
    """The target of corrections of a row."""
    return row.caption.window_id, row.caption.start_seconds, row.caption.end_seconds, row.stage


def _check_text(row: ReviewRow, text: str) -> None:
    """Refuse a rewritten text that the stage's kind does not permit."""
    if row.kind is Kind.CHOICE and text not in row.choices:
        raise DecisionError(f"{text!r} is not one of the choices: {', '.join(row.choices)}")
    if row.kind is Kind.JSON:
        try:
            json.loads(text)
        except ValueError as error:
            raise DecisionError(f"the text is not valid JSON ({error}): the captions of {row.stage} are JSON") from None
