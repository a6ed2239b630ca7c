"""Reuse of the rows that earlier runs made of a shard's windows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.request import POISON
from caption_assets.captioning.rows import Problem, stage1_failed, uncaptioned
from caption_assets.captioning.task import Captioned, Task
from caption_assets.store.tables import CaptionRow, Status, Table


class EarlierRows:
    """Rows from published tables and checkpoints, to be found by window and fingerprint.

    Args:
        rows: the oldest first. Of two of the same window and fingerprint one with a caption is kept, else the later.
    """

    def __init__(self, rows: Iterable[tuple[Table, CaptionRow]]) -> None:
        self._rows: dict[tuple[Table, str, str], CaptionRow] = {}
        for table, row in rows:
            if row.fingerprint is None:
                continue
            place = table, row.window_id, row.fingerprint
            before = self._rows.get(place)
            if before is None or before.status is not Status.OK or row.status is Status.OK:
                self._rows[place] = row

    def find(self, table: Table, window_id: str, fingerprint: str) -> CaptionRow | None:
        """The row that was made of this window under this fingerprint."""
        return self._rows.get((table, window_id, fingerprint))


@dataclass(frozen=True, slots=True)
class Reuse:
    """Decides which rows stay as they are.

    One with a caption does, as long as its fingerprint is what it would be now. One that failed is made again, until
    ``max_attempts`` requests have been made for it. A window that crashes the engine is not asked again under the same
    engine settings: each run would lose three engines to it.
    """

    recipe: Recipe
    tables: frozenset[Table]
    """What is wanted: stage 1, stage 2 or both."""
    max_attempts: int
    earlier: EarlierRows
    engine_settings: str
    """Identity of the settings of this run's engine."""

    def settle(self, task: Task) -> Captioned | Task:
        """What a task comes to if nothing is left to be made of it; else the task, with what is there already."""
        window, recipe = task.window, self.recipe
        with_stage2 = Table.STAGE2 in self.tables
        if window.status is Status.FAILED:
            problem = Problem(window.error_kind or "unreadable", window.error or "the clip cannot be read")
            return uncaptioned(recipe, task, problem, with_stage2=with_stage2)
        stage1, tried1 = task.stage1, 0
        if stage1 is None:
            stage1, tried1 = self._found(Table.STAGE1, window.window_id, recipe.fingerprint(1, window))
        if stage1 is None:
            return replace(task, tried=(tried1, 0))
        if not with_stage2:
            return Captioned(task, stage1, None)
        if stage1.caption is None:
            return Captioned(task, stage1, stage1_failed(recipe, window))
        fingerprint = recipe.fingerprint(2, window, stage1.caption)
        stage2, tried2 = self._found(Table.STAGE2, window.window_id, fingerprint)
        if stage2 is None:
            return replace(task, stage1=stage1, tried=(0, tried2))
        return Captioned(task, stage1, stage2)

    def _found(self, table: Table, window_id: str, fingerprint: str) -> tuple[CaptionRow | None, int]:
        """A row that stays as it is, and the requests that were made for one that does not."""
        row = self.earlier.find(table, window_id, fingerprint)
        if row is None:
            return None, 0
        if row.error_kind == POISON:
            return (row, 0) if row.engine_settings == self.engine_settings else (None, 0)
        if row.status is Status.OK or row.attempts >= self.max_attempts:
            return row, 0
        return None, row.attempts
