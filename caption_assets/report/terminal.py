"""The captions of a shard as text for a terminal or a pipe, and as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import islice
from shutil import get_terminal_size
from textwrap import wrap

import typer

from caption_assets.checks.stored_tables import StoredShard, StoredTable
from caption_assets.report.sides import PAST, decision_time, position
from caption_assets.store.corrections import Correction
from caption_assets.store.root import Root
from caption_assets.store.tables import (
    CLIP_MANIFEST,
    CaptionRow,
    ManifestRow,
    Status,
    TableError,
    extent,
    stored_shards,
)

INDENT = "  "


@dataclass(frozen=True, slots=True)
class WindowCaptions:
    """A window, or an unreadable clip, with its captions."""

    window: ManifestRow
    captions: Mapping[str, CaptionRow | None]
    """By stage; None where the stored captions were made from another manifest."""
    corrections: Mapping[str, Correction] = field(default_factory=dict)
    """People's corrections of these captions, by stage."""

    @property
    def has_failed(self) -> bool:
        """Whether the clip is unreadable, or a stage has no caption."""
        statuses = [self.window.status, *(row.status for row in self.captions.values() if row)]
        return Status.FAILED in statuses


def show_shard(
    root: Root,
    shard: str,
    order: Sequence[str],
    *,
    stage: str | None = None,
    limit: int | None = None,
    only_failed: bool = False,
    as_json: bool = False,
) -> None:
    """Print the captions of a shard, window by window.

    Args:
        root: the root.
        shard: the shard's key.
        order: the recipe's stages, in order; other stored stages follow them.
        stage: the stage to print; None for all.
        limit: maximum number of windows; None for all.
        only_failed: whether to print only windows without a caption, and unreadable clips.
        as_json: whether to print a JSON document.

    Raises:
        TableError: if the shard has no manifest or no such stage, or a table is damaged.
        StoreError: if the root cannot be read.
    """
    stored = StoredShard(root, shard)
    require_shards(root, [shard], stored_shards(root, CLIP_MANIFEST))
    tables = _tables(stored, order, stage)
    windows = _windows(stored, tables)
    wanted = [window for window in windows if window.has_failed] if only_failed else windows
    shown = list(islice(wanted, limit))
    if as_json:
        print(json.dumps({"shard": shard, "windows": [_record(window) for window in shown]}, ensure_ascii=False))
        return
    width = get_terminal_size().columns if sys.stdout.isatty() else None
    typer.secho(_heading(shard, windows, tables), bold=True)
    for window in shown:
        print()
        for line in _lines(window, width):
            typer.echo(line)
    if len(shown) < len(wanted):
        print(f"\n{_count(len(wanted) - len(shown), 'more window')}: raise --limit, or leave it out")


def require_shards(root: Root, shards: Iterable[str], known: Collection[str]) -> None:
    """Check that shards have tables.

    Raises:
        TableError: with the first one that has none, and similar names.
    """
    for shard in shards:
        if shard not in known:
            raise TableError(unknown_name(f"{root.url} has no tables of shard {shard!r}", shard, sorted(known)))


def unknown_name(what: str, name: str, known: Sequence[str]) -> str:
    """An error message with the names that are similar to a wrong one, or the first ones."""
    if not known:
        return f"{what}, and no others: caption it first (`caption-assets run`), or check CAPTION_ROOT"
    near = get_close_matches(name, known, n=3)
    names = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(known[:5])}{', …' * (len(known) > 5)}"
    return f"{what}; {names}"


def _tables(stored: StoredShard, order: Sequence[str], stage: str | None) -> dict[str, StoredTable]:
    tables = stored.caption_tables()
    if stage is None:
        return {name: tables[name] for name in (*order, *tables) if name in tables}
    if stage not in tables:
        raise TableError(
            unknown_name(f"shard {stored.shard!r} has no captions of stage {stage!r}", stage, list(tables))
        )
    return {stage: tables[stage]}


def _windows(stored: StoredShard, tables: Mapping[str, StoredTable]) -> list[WindowCaptions]:
    rows = {stage: {extent(row): row for row in table.rows} for stage, table in tables.items()}
    windows = []
    for window in stored.manifest:
        captions = {stage: found.get(extent(window)) for stage, found in rows.items()}
        found = {stage: stored.corrections.find(row, stage) for stage, row in captions.items() if row}
        windows.append(WindowCaptions(window, captions, {stage: one for stage, one in found.items() if one}))
    return windows


def _heading(shard: str, windows: Sequence[WindowCaptions], tables: Mapping[str, StoredTable]) -> str:
    clips = len({one.window.clip_key for one in windows})
    captionable = [one for one in windows if one.window.window_index is not None]
    unreadable = len(windows) - len(captionable)
    counts = [_count(clips, "clip"), _count(len(captionable), "window")]
    counts += [f"{unreadable} unreadable"] if unreadable else []
    stages = []
    for stage in tables:
        rows = [row for one in captionable if (row := one.captions[stage]) and row.caption is not None]
        stages.append(f"{stage} {len(rows)}/{len(captionable)}")
    return f"{shard}: {', '.join(counts)}; {', '.join(stages) or 'no captions yet'}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _lines(one: WindowCaptions, width: int | None) -> Iterator[str]:
    window = one.window
    place = position(window.window_index, window.start_seconds, window.end_seconds)
    yield typer.style(f"{window.clip_key}  {place}", fg=typer.colors.CYAN)
    if window.window_index is None:
        yield typer.style(f"{INDENT}{window.error_kind}: {window.error}", fg=typer.colors.RED)
        return
    for stage, row in one.captions.items():
        text, color = _text(row)
        yield from (typer.style(line, fg=color) for line in _wrapped(f"{stage}: {text}", width))
        if row and (correction := one.corrections.get(stage)):
            color = typer.colors.MAGENTA
            yield from (typer.style(line, fg=color) for line in _wrapped(_decision(row, correction), width, depth=2))


def _text(row: CaptionRow | None) -> tuple[str, str | None]:
    """A stage's answer with its flags, or its error, and the color."""
    if row is None:
        return "not captioned: the manifest is newer than these captions", typer.colors.YELLOW
    if row.caption is None:
        return f"failed: {row.error_kind}: {row.error}", typer.colors.RED
    notes = ", ".join([*row.flags, *row.reductions])
    return f"{row.caption}  [{notes}]" if notes else row.caption, typer.colors.YELLOW if row.flags else None


def _decision(row: CaptionRow, correction: Correction) -> str:
    """A person's correction, with the text of a rewrite, and with the text that an outdated one is about."""
    reason = f": {correction.reason}" if correction.reason else ""
    lines = [f"{PAST[correction.decision]} by {correction.reviewer}, {decision_time(correction)}{reason}"]
    if correction.caption is not None:
        lines.append(f"text: {correction.caption}")
    if correction.is_outdated(row):
        lines.append(f"outdated, decided on: {correction.reviewed_caption or 'no caption'}")
    return "\n".join(lines)


def _wrapped(text: str, width: int | None, depth: int = 1) -> Iterator[str]:
    """The lines of a text: in a terminal wrapped with an indent, in a pipe as they are."""
    indent = INDENT * depth
    for line in text.splitlines() or [""]:
        wrapped = wrap(line, max(width, 40), initial_indent=indent, subsequent_indent=indent + INDENT) if width else []
        yield from wrapped or [f"{indent}{line}"]


def _record(one: WindowCaptions) -> dict[str, object]:
    """The window as a JSON object. Captions of a JSON stage stay text, as in the table."""
    window = one.window
    return {
        "clip_key": window.clip_key,
        "window_index": window.window_index,
        "window_id": window.window_id,
        "start_seconds": window.start_seconds,
        "end_seconds": window.end_seconds,
        "error_kind": window.error_kind,
        "error": window.error,
        "stages": {
            stage: None if row is None else _caption(row, one.corrections.get(stage))
            for stage, row in one.captions.items()
        },
    }


def _caption(row: CaptionRow, correction: Correction | None) -> dict[str, object]:
    return {
        "status": row.status,
        "caption": row.caption,
        "flags": list(row.flags),
        "reductions": list(row.reductions),
        "finish_reason": row.finish_reason,
        "error_kind": row.error_kind,
        "error": row.error,
        **({"probabilities": dict(row.probabilities)} if row.probabilities else {}),
        **({"correction": _correction(row, correction)} if correction else {}),
    }


def _correction(row: CaptionRow, correction: Correction) -> dict[str, object]:
    return {
        "decision": correction.decision,
        "reviewer": correction.reviewer,
        "decided_at": correction.decided_at.isoformat(),
        "caption": correction.caption,
        "reason": correction.reason,
        "reviewed_caption": correction.reviewed_caption,
        "outdated": correction.is_outdated(row),
    }
