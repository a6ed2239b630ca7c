"""The selection of windows: steps that leave out windows without texts, with flags, or by an SQL condition."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from caption_assets.captioning.quality import REGENERATED
from caption_assets.export.clip import CaptionedWindow, ShardTables
from caption_assets.export.condition import Condition
from caption_assets.export.config import ExportConfig
from caption_assets.store.corrections import Decision
from caption_assets.store.tables import CLIP_MANIFEST, CaptionRow, ManifestRow, Status

Step = Callable[[CaptionedWindow], CaptionedWindow | str]
"""Returns the window for the next step, or the reason why it is left out."""
NOT_SELECTED = "where"
"""Reason of a window for which the condition is not true."""


def selection_steps(tables: ShardTables, export: ExportConfig) -> Sequence[Step]:
    """The steps that select windows.

    By default a window needs a caption of each stage, unless a person wrote those that are trained on; and these must
    have no flag that causes a regeneration. A condition replaces both rules; a window still needs the captions that are
    trained on.

    Raises:
        ConditionError: if the condition cannot be evaluated on the tables.
        TableError: if a table is damaged.
    """
    texts = tuple(export.text_weights)
    if export.where is None:
        return RequireCaptions([stage.name for stage in tables.stages], texts), RequireUnflagged(texts)
    return RequireCaptions(texts, texts), RequireCondition(Condition(export.where, tables.stages), tables)


class RequireCaptions:
    """The step that leaves out unreadable clips, and windows without a caption of one of some stages.

    The reason is the first table without it, with the kind of error. A window needs no caption of the model if a person
    wrote all ``texts``, the captions that are trained on.
    """

    def __init__(self, stages: Iterable[str], texts: Iterable[str]) -> None:
        self._stages = tuple(stages)
        self._texts = tuple(texts)

    def __call__(self, window: CaptionedWindow) -> CaptionedWindow | str:
        """The window, or the reason."""
        is_rewritten = all(window.present_decision(stage) is Decision.REWRITE for stage in self._texts)
        captions = {} if is_rewritten else {stage: window.captions[stage] for stage in self._stages}
        rows: Mapping[str, ManifestRow | CaptionRow] = {CLIP_MANIFEST: window.row, **captions}
        failures = (f"{table}: {row.error_kind}" for table, row in rows.items() if row.status is Status.FAILED)
        return next(failures, window)


class RequireUnflagged:
    """The step that leaves out windows with a flag of ``REGENERATED`` on a caption of one of some stages.

    The reason is the first such flag. A caption that a person accepted is exempt, unless its text has changed since.
    """

    def __init__(self, stages: Iterable[str]) -> None:
        self._stages = tuple(stages)

    def __call__(self, window: CaptionedWindow) -> CaptionedWindow | str:
        """The window, or the reason."""
        flags = (
            f"flagged: {flag}"
            for stage in self._stages
            if window.present_decision(stage) is not Decision.ACCEPT
            for flag in window.captions[stage].flags
            if flag in REGENERATED
        )
        return next(flags, window)


class RequireCondition:
    """The step that leaves out windows for which a condition is not true.

    The condition is evaluated for all rows at once, and one byte for each row is in memory.
    """

    def __init__(self, condition: Condition, tables: ShardTables) -> None:
        self._is_selected = bytes(condition.select(tables))

    def __call__(self, window: CaptionedWindow) -> CaptionedWindow | str:
        """The window, or the reason."""
        return window if self._is_selected[window.number] else NOT_SELECTED
