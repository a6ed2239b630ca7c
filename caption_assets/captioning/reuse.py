"""Reuse of the rows that earlier runs made of a shard's windows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product

from caption_assets.captioning.quality import QUALITY_RULES, REGENERATED, find_flags
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.request import CUT, POISON
from caption_assets.captioning.stages import STAGE1, Stage
from caption_assets.captioning.window_job import WindowJob, needed_failed
from caption_assets.store.tables import CaptionFile, CaptionRow, ManifestRow, Status


@dataclass(frozen=True, slots=True)
class EarlierRow:
    """A row that an earlier run made."""

    row: CaptionRow
    quality_rules: str
    """Version of the rules that its flags are from."""


class EarlierRows:
    """Rows from published tables and checkpoints, to be found by window and fingerprint.

    Args:
        files: the oldest first. Of two rows of the same window and fingerprint one with a caption is kept, else the
            later.
    """

    def __init__(self, files: Iterable[CaptionFile]) -> None:
        self._rows: dict[tuple[str, str], dict[str, EarlierRow]] = {}
        for file in files:
            rules = file.metadata.get(QUALITY_RULES, "1")
            for row in file.rows:
                self._add(file.table, EarlierRow(row, rules))

    def _add(self, table: str, earlier: EarlierRow) -> None:
        if (fingerprint := earlier.row.fingerprint) is None:
            return
        made = self._rows.setdefault((table, earlier.row.window_id), {})
        before = made.get(fingerprint)
        if before is None or before.row.status is not Status.OK or earlier.row.status is Status.OK:
            made[fingerprint] = earlier

    def of(self, table: str, window_id: str) -> Mapping[str, EarlierRow]:
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

    Rows of other quality rules are flagged again. Those whose flags call for it are captioned again, once: a caption
    that is not better leaves the earlier one in place.
    """

    recipe: Recipe
    max_attempts: int
    earlier: EarlierRows
    engine_settings: str
    """Identity of the settings of this run's engine."""

    def resolve(self, job: WindowJob) -> None:
        """Give a job the rows that stay, and the attempts of those that do not; finishes it if no stage is missing."""
        window = job.window
        if window.status is Status.FAILED:
            job.fail(self.recipe, window.error_kind or "unreadable", window.error or "the clip cannot be read")
        for stage in job.missing:
            if any(name not in job.rows for name in stage.needs):
                continue  # which of its rows stay depends on captions that are made first
            if (captions := job.captions(stage)) is None:
                job.add(stage, needed_failed(self.recipe, stage, window))
                continue
            earlier, job.earlier_attempts[stage.name] = self._found(stage, window, captions)
            if earlier is not None:
                self._take(job, stage, earlier)

    def _take(self, job: WindowJob, stage: Stage, earlier: EarlierRow) -> None:
        """Give a job a row that stays, or one that stays unless a better caption is generated."""
        # The same captions in its prompt may come from rows that were made again since.
        row = replace(earlier.row, stage1_fingerprint=job.row(STAGE1).fingerprint if stage.needs else None)
        if row.caption is not None and earlier.quality_rules != str(self.recipe.quality_rules):
            row = replace(row, flags=self._flags(job, stage, row.caption, row.finish_reason or ""))
            if self.recipe.regenerations and not REGENERATED.isdisjoint(row.flags):
                job.outdated[stage.name], job.earlier_attempts[stage.name] = row, row.attempts
                return
        job.add(stage, row, reused=True)

    def _flags(self, job: WindowJob, stage: Stage, caption: str, finish_reason: str) -> tuple[str, ...]:
        """The flags of a stored caption. It is compared with a stored caption of the window before it."""
        previous = job.previous.earlier_caption(stage) if job.previous else None
        instruction = self.recipe.template(stage, job.window)
        return find_flags(caption, finish_reason=finish_reason, instruction=instruction, neighbor=previous)

    def _found(self, stage: Stage, window: ManifestRow, captions: Mapping[str, str]) -> tuple[EarlierRow | None, int]:
        """A row that stays, and the requests that were made for one that does not."""
        tried = 0
        for earlier in self._candidates(stage, window, captions):
            row = earlier.row
            if self._stays(row):
                return earlier, 0
            tried = max(tried, 0 if row.error_kind == POISON else row.attempts)
        return None, tried

    def _candidates(self, stage: Stage, window: ManifestRow, captions: Mapping[str, str]) -> Iterator[EarlierRow]:
        """Rows that were made of this window in the way in which it would be made now."""
        recipe, made = self.recipe, self.earlier.of(stage.name, window.window_id)
        if not made:
            return
        for reduced, cut_off in product((False, True), repeat=2):
            found = made.get(recipe.fingerprint(stage, window, captions, reduced=reduced, cut_off=cut_off))
            if found and (reduced or self._fits(found.row)) and (cut_off or self._ends(found.row)):
                yield found
        former = recipe.former_fingerprint(stage, window, captions)
        found = made.get(former) if former else None
        # The output limit was part of it, whether an answer was cut off or not.
        if found and self._fits(found.row) and (found.row.finish_reason == CUT or self._ends(found.row)):
            yield found

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
