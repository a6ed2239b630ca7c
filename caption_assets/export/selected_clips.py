"""The clips of a shard as they are exported. Windows pass a chain of steps; each changes a window or leaves it out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from caption_assets.export.clip import CaptionedClip, CaptionedWindow, ShardTables, TrainingText
from caption_assets.export.config import ExportConfig
from caption_assets.export.corrected import ApplyCorrections
from caption_assets.export.selection import Step, selection_steps
from caption_assets.export.token_budget import ApplyBudget, open_tokenizer


def select_clips(tables: ShardTables, export: ExportConfig) -> Iterator[CaptionedClip]:
    """The clips of a shard in the manifest's order, each with its windows to export and the reasons of the others.

    Two passes over the same tables give the same clips.

    Raises:
        TableError: if a table was made from an earlier version of another one.
        ConditionError: if the condition of the export cannot be evaluated.
        WeightsError: if the tokenizer of the export cannot be downloaded.
        TokenizerError: if it cannot be used.
    """
    steps = build_steps(tables, export)
    for _, windows in groupby(tables.windows(), key=lambda window: window.row.clip_key):
        given = list(windows)
        passed = [_apply(steps, window) for window in given]
        yield CaptionedClip(
            tables.shard,
            given[0].row,
            tuple(window for window in passed if isinstance(window, CaptionedWindow)),
            tuple(reason for reason in passed if isinstance(reason, str)),
        )


def build_steps(tables: ShardTables, export: ExportConfig) -> Sequence[Step]:
    """The steps of an export, in order. Raises the errors of ``selection_steps`` and ``open_tokenizer``."""
    steps: list[Step] = [ApplyCorrections(tables.stages, export.text_weights)]
    steps += selection_steps(tables, export)
    steps.append(TextChoice(export))
    if export.budget is not None:
        counter = open_tokenizer(tables.root, export.budget)
        steps.append(ApplyBudget(counter, export.budget.over_limit, tables.stages))
    if tables.limit is not None:
        steps.append(tables.limit)
    return steps


class TextChoice:
    """The step that chooses the texts to train on: the captions of the stages in ``ExportConfig.texts``."""

    def __init__(self, export: ExportConfig) -> None:
        self._weights = export.text_weights

    def __call__(self, window: CaptionedWindow) -> CaptionedWindow | str:
        """The window with its texts."""
        texts = tuple(
            TrainingText(stage, window.captions[stage].caption or "", weight) for stage, weight in self._weights.items()
        )
        return replace(window, texts=texts)


def limit_clip(clip: CaptionedClip, limit: Step) -> CaptionedClip:
    """A clip without the windows that a limit leaves out."""
    passed = [limit(window) for window in clip.windows]
    return replace(
        clip,
        windows=tuple(window for window in passed if isinstance(window, CaptionedWindow)),
        left_out=(*clip.left_out, *(reason for reason in passed if isinstance(reason, str))),
    )


def _apply(steps: Sequence[Step], window: CaptionedWindow) -> CaptionedWindow | str:
    for step in steps:
        passed = step(window)
        if isinstance(passed, str):
            return passed
        window = passed
    return window
