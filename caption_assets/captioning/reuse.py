"""Reuse of the rows that earlier runs made of a shard's windows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product

from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.request import CUT, POISON
from caption_assets.captioning.rows import Problem, stage1_failed, uncaptioned
from caption_assets.captioning.stages import STAGE1, STAGE2
from caption_assets.captioning.task import Captioned, Task
from caption_assets.store.tables import CaptionRow, ManifestRow, Status


class EarlierRows:
    """Rows from published tables and checkpoints, to be found by window and fingerprint.

    Args:
        rows: the oldest first. Of two of the same window and fingerprint one with a caption is kept, else the later.
    """

    def __init__(self, rows: Iterable[tuple[str, CaptionRow]]) -> None:
        self._rows: dict[tuple[str, str], dict[str, CaptionRow]] = {}
        for table, row in rows:
            if row.fingerprint is None:
                continue
            made = self._rows.setdefault((table, row.window_id), {})
            before = made.get(row.fingerprint)
            if before is None or before.status is not Status.OK or row.status is Status.OK:
                made[row.fingerprint] = row

    def of(self, table: str, window_id: str) -> Mapping[str, CaptionRow]:
        """The rows that were made of this window, by fingerprint."""
        return self._rows.get((table, window_id), {})


@dataclass(frozen=True, slots=True)
class Reuse:
    """Decides which rows stay as they are.

    One with a caption does, as long as its fingerprint is what it would be now. Whether the context would reduce a
    window, and the output limit cut off its answer, is not known before the engine runs. A row to which neither was
    done stays while there is room for its prompt and answer; else it stays while those limits are the same. One that
    failed is made again, until ``max_attempts`` requests have been made for it. A window that crashes the engine is not
    asked again under the same engine settings: each run would lose three engines to it.
    """

    recipe: Recipe
    tables: frozenset[str]
    """What is wanted: stage 1, stage 2 or both."""
    max_attempts: int
    earlier: EarlierRows
    engine_settings: str
    """Identity of the settings of this run's engine."""

    def settle(self, task: Task) -> Captioned | Task:
        """What a task comes to if nothing is left to be made of it; else the task, with what is there already."""
        window, recipe = task.window, self.recipe
        with_stage2 = STAGE2.name in self.tables
        if window.status is Status.FAILED:
            problem = Problem(window.error_kind or "unreadable", window.error or "the clip cannot be read")
            return uncaptioned(recipe, task, problem, with_stage2=with_stage2)
        stage1, tried1 = task.stage1, 0
        if stage1 is None:
            stage1, tried1 = self._found(STAGE1.name, 1, window)
        if stage1 is None:
            return replace(task, tried=(tried1, 0))
        if not with_stage2:
            return Captioned(task, stage1, None)
        if stage1.caption is None:
            return Captioned(task, stage1, stage1_failed(recipe, window))
        stage2, tried2 = self._found(STAGE2.name, 2, window, stage1.caption)
        if stage2 is None:
            return replace(task, stage1=stage1, tried=(0, tried2))
        # The same words may come from a row that was made again since.
        return Captioned(task, stage1, replace(stage2, stage1_fingerprint=stage1.fingerprint))

    def _found(
        self, table: str, stage: int, window: ManifestRow, stage1_caption: str | None = None
    ) -> tuple[CaptionRow | None, int]:
        """A row that stays as it is, and the requests that were made for one that does not."""
        tried = 0
        for row in self._candidates(table, stage, window, stage1_caption):
            if self._stays(row):
                return row, 0
            tried = max(tried, 0 if row.error_kind == POISON else row.attempts)
        return None, tried

    def _candidates(
        self, table: str, stage: int, window: ManifestRow, stage1_caption: str | None
    ) -> Iterator[CaptionRow]:
        """Rows that were made of this window in the way in which it would be made now."""
        recipe, made = self.recipe, self.earlier.of(table, window.window_id)
        if not made:
            return
        for reduced, cut_off in product((False, True), repeat=2):
            row = made.get(recipe.fingerprint(stage, window, stage1_caption, reduced=reduced, cut_off=cut_off))
            if row and (reduced or self._fits(row)) and (cut_off or self._ends(row)):
                yield row
        former = recipe.former_fingerprint(stage, window, stage1_caption)
        row = made.get(former) if former else None
        # The output limit was part of it, whether an answer was cut off or not.
        if row and self._fits(row) and (row.finish_reason == CUT or self._ends(row)):
            yield row

    def _fits(self, row: CaptionRow) -> bool:
        """Whether the context has room for what the row's window was shown with, so that it would not be reduced."""
        context = self.recipe.context
        if context is None or row.prompt_tokens is None:
            return True
        return row.prompt_tokens + self.recipe.generation.max_output_tokens <= context

    def _ends(self, row: CaptionRow) -> bool:
        """Whether the answer ends within the output limit, or within twice that where it would be generated again."""
        longest = self.recipe.generation.max_output_tokens * (2 if self.recipe.regenerations else 1)
        return row.finish_reason != CUT and (row.output_tokens or 0) <= longest

    def _stays(self, row: CaptionRow) -> bool:
        if row.error_kind == POISON:
            return row.engine_settings == self.engine_settings
        return row.status is Status.OK or row.attempts >= self.max_attempts
