"""One caption of a row, as it stands on a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import nan

from caption_assets.report.page import Facts, Side
from caption_assets.report.text_diff import DiffSegments
from caption_assets.store.tables import CaptionRow

SHOWN_INDICES = 40
"""Frame indices that are told one by one; a long window has hundreds."""
OUTDATED = "outdated"
"""Flag of a stage-2 caption that was made from another stage-1 caption than the one beside it."""


class SharedProvenance:
    """What many captions of a page share of how they were made, each told once.

    Args:
        prompts: for each column of the page, the instruction of its table.
    """

    def __init__(self, prompts: Sequence[str | None]) -> None:
        self.found: dict[Facts, int] = {}
        """Number of each."""
        self._prompts = prompts

    def number(self, column: int, row: CaptionRow, prompt: str | None = None) -> int:
        """That of a row's.

        Args:
            column: of the page.
            row: the caption.
            prompt: the clip's own instruction, if it brought one.
        """
        facts = (
            ("Model", row.model),
            ("Revision", row.revision),
            ("LoRA adapter", row.lora and f"{row.lora} @ {row.lora_revision}"),
            ("Sampling", _sampling(row.sampling or {})),
            ("Prompt", f"{row.prompt_name}: {prompt or self._prompts[column] or 'unknown'}"),
        )
        return self.found.setdefault(known(facts), len(self.found))


def side(row: CaptionRow, text: DiffSegments | None, making: int, flags: Sequence[str] = ()) -> Side:
    """A caption with all that is told of it.

    Args:
        row: the caption.
        text: its text, told apart from the other one of the page; None if there is no other.
        making: its number among the page's.
        flags: what is to be noted beside its own.
    """
    return Side(
        text=text or (row.caption or "",),
        missing=None if row.caption is not None else f"{row.error_kind}: {row.error}",
        flags=(*flags, *row.flags, *row.reductions),
        facts=_facts(row),
        making=making,
    )


def place(window_index: int | None, start_seconds: float | None, end_seconds: float | None) -> str:
    """Which window of its clip a row is, for a person; a clip that could not be read has none."""
    if window_index is None or start_seconds is None or end_seconds is None:
        return "no window"
    return f"window {window_index}, {_time(start_seconds)} to {_time(end_seconds)}"


def mean_words(rows: Iterable[CaptionRow]) -> float:
    """Mean number of words of those that have a caption; NaN if none has."""
    counts = [len(row.caption.split()) for row in rows if row.caption is not None]
    return sum(counts) / len(counts) if counts else nan


def known(facts: Sequence[tuple[str, object]]) -> tuple[tuple[str, str], ...]:
    """Those that are neither nothing nor empty."""
    return tuple((label, str(value)) for label, value in facts if value)


def _facts(row: CaptionRow) -> Facts:
    indices = [str(index) for index in row.frame_indices or ()]
    if len(indices) > SHOWN_INDICES:
        indices[SHOWN_INDICES - 2 : -1] = ["\N{HORIZONTAL ELLIPSIS}"]
    return known(
        (
            ("Frames", row.frame_indices and f"{len(row.frame_indices)}: {', '.join(indices)}"),
            ("Frames a second", row.frame_fps and f"{row.frame_fps:.3g}"),
            ("Frame size", row.frame_width and f"{row.frame_width} \N{MULTIPLICATION SIGN} {row.frame_height} pixels"),
            (
                "Prompt tokens",
                row.prompt_tokens and f"{row.prompt_tokens:,}, of which {row.cached_tokens or 0:,} cached",
            ),
            ("Output tokens", row.output_tokens and f"{row.output_tokens:,}"),
            ("Ended by", row.finish_reason),
            ("Requests", row.attempts and str(row.attempts)),
        )
    )


def _sampling(sampling: Mapping[str, float | None]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in sampling.items() if value is not None)


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds, 1), 60)
    return f"{minutes:.0f}:{rest:04.1f}"
