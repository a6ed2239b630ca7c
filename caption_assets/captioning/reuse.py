"""The reuse of rows from earlier runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product

from caption_assets.captioning.quality import NEAR_DUPLICATE, QUALITY_RULES, REGENERATED, find_flags
from caption_assets.captioning.recipe import Recipe
from caption_assets.captioning.request import FINISH_LENGTH, POISON
from caption_assets.captioning.stages import Stage
from caption_assets.captioning.window_job import WindowJob, upstream_failed_row, upstream_fingerprints
from caption_assets.store.tables import CaptionFile, CaptionRow, ManifestRow, Status


@dataclass(frozen=True, slots=True)
class EarlierRow:
    """A row from an earlier run."""

    row: CaptionRow
    quality_rules: int
    """Version of the rules that set its flags."""

    @property
    def rank(self) -> tuple[bool, int]:
        """Order of preference among rows of one window: a caption first, then the newest rules."""
        return self.row.status is Status.OK, self.quality_rules


class EarlierRows:
    """Rows from published tables and checkpoints, by window and fingerprint.

    Args:
        files: the oldest first. Of two rows with the same window and fingerprint the one of lower rank is
            dropped; of two with the same rank, the earlier one.
    """

    def __init__(self, files: Iterable[CaptionFile]) -> None:
        self._rows: dict[tuple[str, str], dict[str, EarlierRow]] = {}
        for file in files:
            rules = int(file.metadata.get(QUALITY_RULES, 1))
            for row in file.rows:
                self._add(file.table, EarlierRow(row, rules))

    def _add(self, table: str, earlier: EarlierRow) -> None:
        if (fingerprint := earlier.row.fingerprint) is None:
            return
        rows = self._rows.setdefault((table, earlier.row.window_id), {})
        before = rows.get(fingerprint)
        if before is None or earlier.rank >= before.rank:
            rows[fingerprint] = earlier

    def of(self, table: str, window_id: str) -> Mapping[str, EarlierRow]:
        """The rows of a window, by fingerprint."""
        return self._rows.get((table, window_id), {})


@dataclass(frozen=True, slots=True)
class Reuse:
    """Decides which rows of earlier runs are reused.

    - A row with a caption is reused if its fingerprint is still current. Whether the context reduces a window, or the
      output limit cuts off its answer, is only known once the engine has run. A row without reduction and cut-off is
      therefore reused while its prompt and answer fit the limits, and any other row while these limits are unchanged.
    - A failed row is retried until ``max_attempts`` requests were made for it.
    - A window that crashes the engine is not retried with the same engine settings: it would cost each run three engine
      restarts.
    - A row of other quality rules is flagged again. If its flags require it, it is regenerated once, and kept if
      the new caption is not better.
    """

    recipe: Recipe
    max_attempts: int
    earlier: EarlierRows
    engine_settings: str
    """Identity of the settings of this run's engine."""

    def resolve(self, job: WindowJob) -> None:
        """Add the reused rows to a job, and set the attempts of the others. A job without missing rows is finished.

        Called again after each added row. It decides on each stage once: the others may be in progress.
        """
        window = job.window
        job.reuse = self.resolve
        if window.status is Status.FAILED:
            job.fail(self.recipe, window.error_kind or "unreadable", window.error or "the clip cannot be read")
        for stage in job.missing:
            if stage.name in job.rows or stage.name in job.earlier_attempts:
                continue
            if any(name not in job.rows for name in stage.needs):
                continue
            if (texts := job.texts(stage)) is None:
                job.add_row(stage, upstream_failed_row(self.recipe, stage, job))
                continue
            earlier, job.earlier_attempts[stage.name] = self._find(stage, window, texts)
            if earlier is not None:
                self._reuse(job, stage, earlier)

    def _reuse(self, job: WindowJob, stage: Stage, earlier: EarlierRow) -> None:
        """Add an earlier row to a job, or mark it as outdated if newer quality rules require another caption."""
        # The rows that it needs may be newer, with the same texts.
        needed = {name: job.rows[name].row for name in stage.needs}
        row = replace(earlier.row, upstream_fingerprints=upstream_fingerprints(stage, needed))
        if row.caption is not None and earlier.quality_rules != self.recipe.quality_rules:
            row = replace(row, flags=self._flags(job, stage, row, row.caption))
            if self.recipe.regenerations and not REGENERATED.isdisjoint(row.flags):
                job.outdated[stage.name], job.earlier_attempts[stage.name] = row, row.attempts
                return
        job.add_row(stage, row, reused=True)

    def _flags(self, job: WindowJob, stage: Stage, row: CaptionRow, caption: str) -> tuple[str, ...]:
        """The flags of a stored caption, by the current rules."""
        previous = job.previous.current_row(stage) if job.previous else None
        flags = find_flags(
            caption,
            finish_reason=row.finish_reason or "",
            instruction=self.recipe.template(stage, job.window),
            neighbor=previous.caption if previous else None,
            output=stage.output,
        )
        if job.previous and previous is None and NEAR_DUPLICATE in row.flags:  # its caption is not generated yet
            flags = (*flags, NEAR_DUPLICATE)
        return flags

    def _find(self, stage: Stage, window: ManifestRow, texts: Mapping[str, str]) -> tuple[EarlierRow | None, int]:
        """A row to reuse; without one, the number of requests that earlier runs made."""
        tried = 0
        candidates = self._candidates(stage, window, texts)
        for earlier in sorted(candidates, key=lambda earlier: earlier.rank, reverse=True):
            row = earlier.row
            if self._is_final(row):
                return earlier, 0
            tried = max(tried, 0 if row.error_kind == POISON else row.attempts)
        return None, tried

    def _candidates(self, stage: Stage, window: ManifestRow, texts: Mapping[str, str]) -> Iterator[EarlierRow]:
        """The rows of a window with a current fingerprint."""
        recipe, rows = self.recipe, dict(self.earlier.of(stage.name, window.window_id))
        versions = (None, *range(2, recipe.quality_rules + 1))
        for reduced, cut_off, rules in product((False, True), (False, True), versions):
            if not rows:  # usually after the first fingerprint, which takes 30 µs
                return
            fingerprint = recipe.fingerprint(
                stage, window, texts, reduced=reduced, cut_off=cut_off, quality_rules=rules
            )
            found = rows.pop(fingerprint, None)
            if (
                found
                and (reduced or self._fits_context(stage, found.row))
                and (cut_off or self._fits_output_limit(stage, found.row))
            ):
                yield found
        former = recipe.former_fingerprint(stage, window, texts) if rows else None
        found = rows.get(former) if former else None
        # Former fingerprints contain the output limit, so that cut-off answers can be reused too.
        if (
            found
            and self._fits_context(stage, found.row)
            and (found.row.finish_reason == FINISH_LENGTH or self._fits_output_limit(stage, found.row))
        ):
            yield found

    def _fits_context(self, stage: Stage, row: CaptionRow) -> bool:
        """Whether the row's prompt and an answer still fit the context, so that the window is not reduced."""
        context = self.recipe.context
        if context is None or row.prompt_tokens is None:
            return True
        return row.prompt_tokens + self.recipe.params(stage).max_output_tokens <= context

    def _fits_output_limit(self, stage: Stage, row: CaptionRow) -> bool:
        """Whether the answer fits the output limit, or twice that limit if the recipe allows regenerations."""
        longest = self.recipe.params(stage).max_output_tokens * (2 if self.recipe.regenerations else 1)
        return row.finish_reason != FINISH_LENGTH and (row.output_tokens or 0) <= longest

    def _is_final(self, row: CaptionRow) -> bool:
        """Whether a row is reused, not retried."""
        if row.error_kind == POISON:
            return row.engine_settings == self.engine_settings
        return row.status is Status.OK or row.attempts >= self.max_attempts
