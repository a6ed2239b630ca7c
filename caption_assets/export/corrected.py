"""People's corrections in the export: the step that applies them, and their counts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from caption_assets.captioning.output import ChoiceOutput, JsonOutput, Output, TextOutput
from caption_assets.captioning.stages import Stage
from caption_assets.export.clip import CaptionedWindow
from caption_assets.store.corrections import Decision
from caption_assets.store.tables import CaptionRow, Status

REJECTED = "rejected"
"""Reason of a window that a person rejected."""
INVALID = "invalid rewrite"
"""Reason of a window with a rewrite that is no JSON or no choice of its stage, followed by the stage's name."""

REWRITTEN: Mapping[str, Any] = {
    "status": Status.OK,
    "flags": (),
    "finish_reason": None,
    "error_kind": None,
    "error": None,
}
"""The columns of a row with a person's text that were about the model's."""


class ApplyCorrections:
    """The step that leaves out windows with a rejected text, and replaces the captions that people rewrote.

    Both hold although the model's text has changed since: people judge by the video. A rewritten caption has no flags
    and no error. Captions of stages that need it stay as they are.

    Args:
        stages: the stages of the recipe.
        texts: the stages whose captions are trained on. Rejections of others leave no window out.
    """

    def __init__(self, stages: Iterable[Stage], texts: Iterable[str]) -> None:
        self._outputs = {stage.name: stage.output for stage in stages}
        self._texts = frozenset(texts)

    def __call__(self, window: CaptionedWindow) -> CaptionedWindow | str:
        """The window with its corrected captions, or the reason why it is left out."""
        corrected = dict(window.captions)
        for stage, correction in window.corrections.items():
            if correction.decision is Decision.REJECT and stage in self._texts:
                return REJECTED
            if correction.caption is not None:
                if not _is_answer(self._outputs[stage], correction.caption):
                    return f"{INVALID}: {stage}"
                corrected[stage] = rewritten_row(corrected[stage], correction.caption)
        return replace(window, captions=corrected)


def rewritten_row(row: CaptionRow, caption: str) -> CaptionRow:
    """A row with a person's text."""
    return replace(row, caption=caption, **REWRITTEN)


def _is_answer(output: Output, text: str) -> bool:
    """Whether a text is an answer of the output's form."""
    match output:
        case TextOutput():
            return True
        case ChoiceOutput():
            return text in output.choices
        case JsonOutput():
            try:
                json.loads(text)
            except ValueError:
                return False
            return True
