"""The comparison of two versions of a shard's captions: statistics, and a page of the windows that differ.

The versions are in two roots, or in one: the captions and the previous texts, which they replaced.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table as Grid

from caption_assets.captioning.open_shard import STAGE_PROMPT
from caption_assets.captioning.previous_text import PREVIOUS_PROMPTS
from caption_assets.captioning.recipe import CLIP_PROMPT
from caption_assets.checks.stored_tables import StoredShard, StoredTable, captions_of, count_flagged, mean_words
from caption_assets.report.page import Page, Properties, ReadPreviews, Row, Side, publish_page
from caption_assets.report.previous_table import previous_table
from caption_assets.report.sides import SharedProvenance, build_side, position
from caption_assets.report.text_diff import TextDiff, diff_texts
from caption_assets.store.previews import Preview, StoredPreviews
from caption_assets.store.root import Root
from caption_assets.store.tables import CaptionRow, TableError

QUANTILES = (0.05, 0.25, 0.5, 0.75)
"""Quantiles of the similarity that are reported."""
FACETS = ("Change", "Error", "Flag", "Note")
"""Properties of a row to filter by."""
ARROW = "\N{RIGHTWARDS ARROW}"

_Window = tuple[str, int | None, float | None, float | None]


@dataclass(frozen=True, slots=True)
class Pair:
    """The rows of one window in both versions; at most one of them is missing."""

    a: CaptionRow | None
    b: CaptionRow | None
    difference: TextDiff | None
    """The difference of the captions; None unless both rows have one, and for choices."""

    @property
    def kind(self) -> str:
        """Change from A to B, in a few words."""
        if self.a is None:
            return "only in B"
        if self.b is None:
            return "only in A"
        if self.a.status is not self.b.status:
            return f"{self.a.status} {ARROW} {self.b.status}"
        return "same" if self.a.caption == self.b.caption else "changed"


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of a comparison."""

    both: int
    """Number of rows that both tables have."""
    kinds: Mapping[str, int]
    """Number of windows by kind of change, the most frequent first; see ``Pair.kind``."""
    words: tuple[float | None, float | None]
    """Mean number of words in a caption of A and of B; None for a table without texts."""
    flagged: tuple[int, int]
    """Number of rows with quality flags in A and in B."""
    similarity: Mapping[float, float]
    """Quantiles of ``TextDiff.similarity``, by share; empty if no window has two captions, and for choices."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The rows of two tables, paired by window."""

    shard: str
    versions: tuple[str, str]
    """What A and B are: addresses of the roots, or names."""
    tables: tuple[StoredTable, StoredTable]
    """The table in A and in B."""
    pairs: Sequence[Pair]
    """The windows of A, in order, then those that only B has."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Prompts by hash, of rows that were not made with the prompt of their table."""
    left_out: Properties = ()
    """Labels and numbers of the windows that are not compared."""

    @property
    def table(self) -> str:
        """Name of the table."""
        return self.tables[0].table

    @property
    def headings(self) -> tuple[str, str]:
        """What A and B are, for a page."""
        a, b = self.versions
        return f"A: {a}", f"B: {b}"

    def prompt(self, column: int, row: CaptionRow) -> str | None:
        """The prompt of a row of a version; None if it is not known."""
        of_table = None if row.prompt_name == CLIP_PROMPT else self.tables[column].file_metadata.get(STAGE_PROMPT)
        return self.prompts.get(row.prompt_hash or "", of_table)

    @property
    def figures(self) -> Properties:
        """Labels and values of the statistics."""
        return [*figures(self.statistics), *self.left_out]

    @property
    def statistics(self) -> Statistics:
        """Statistics of all pairs."""
        sides = [pair.a for pair in self.pairs if pair.a], [pair.b for pair in self.pairs if pair.b]
        similar = [pair.difference.similarity for pair in self.pairs if pair.difference]
        return Statistics(
            both=sum(pair.a is not None and pair.b is not None for pair in self.pairs),
            kinds=dict(Counter(pair.kind for pair in self.pairs).most_common()),
            words=(_mean_words(self.tables[0]), _mean_words(self.tables[1])),
            flagged=(count_flagged(sides[0]), count_flagged(sides[1])),
            similarity=dict(zip(QUANTILES, np.quantile(similar, QUANTILES).tolist(), strict=True)) if similar else {},
        )


def compare_captions(a: Root, b: Root, shard: str, table: str, output: Path) -> None:
    """Compare a table of a shard in two roots: print the statistics and write the page.

    Raises:
        TableError: if a table is missing or damaged.
        StoreError: if the page cannot be written.
    """
    previews = StoredPreviews(a, shard), StoredPreviews(b, shard)
    _report(compare_roots(a, b, shard, table), partial(_read_previews, *previews), output)


def compare_previous(root: Root, shard: str, stage: str | None, output: Path) -> None:
    """Compare a stage's captions of a shard with their previous texts: print the statistics and write the page.

    Args:
        root: the root.
        shard: the shard's key.
        stage: as for ``find_stage``; None for the last stage with previous texts, if possible one with text.
        output: the page.

    Raises:
        TableError: if a table is missing or damaged, or has no previous texts.
        StoreError: if the root cannot be read, or the page cannot be written.
    """
    stored = StoredShard(root, shard)
    tables = stored.caption_tables()
    changed = [name for name, table in tables.items() if any(row.previous for row in table.rows)]
    texts = [name for name in changed if tables[name].is_text]
    name = find_stage(root, shard, stage) if stage or not changed else (texts or changed)[-1]
    comparison = compare_versions(stored.table(name), shard)
    if not comparison.pairs:
        others = f"; use {' or '.join(changed)}" if changed else ""
        raise TableError(
            f"{name} of shard {shard!r} in {root.url} has no previous texts: no row replaced a caption{others}"
        )
    _report(comparison, StoredPreviews(root, shard).read, output)


def _report(comparison: Comparison, read_previews: ReadPreviews, output: Path) -> None:
    """Print the statistics and write the page."""
    folder = Root.open(str(output.absolute().parent))
    publish_page(folder, output.name, comparison_page(comparison), read_previews)
    console = Console()
    for line in (f"{comparison.table} of {comparison.shard}", *comparison.headings):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(grid(comparison.figures))
    console.print(f"page of the windows that differ: {output}", markup=False, highlight=False, soft_wrap=True)


def compare_roots(a: Root, b: Root, shard: str, table: str) -> Comparison:
    """Compare a table of a shard in two roots.

    Raises:
        TableError: if one of the tables is missing or damaged.
        StoreError: if a root cannot be read.
    """
    in_a, in_b = (StoredShard(root, shard).table(table) for root in (a, b))
    return Comparison(shard, (a.address(""), b.address("")), (in_a, in_b), pair_rows(in_a, in_b))


def compare_versions(table: StoredTable, shard: str) -> Comparison:
    """Compare the rows of a table that have a previous text with that text."""
    rows = [row for row in table.rows if row.previous]
    before, after = previous_table(table), replace(table, rows=rows, captions=captions_of(rows, table.schema.names))
    return Comparison(
        shard,
        ("previous texts", "present texts"),
        (before, after),
        pair_rows(before, after),
        json.loads(table.file_metadata.get(PREVIOUS_PROMPTS, "{}")),
        [("rows without a previous text", f"{len(table.rows) - len(rows):,}")],
    )


def find_stage(root: Root, shard: str, stage: str | None) -> str:
    """The name of a stage whose captions are stored.

    Args:
        root: the root.
        shard: the shard's key.
        stage: its name, or its position from 1 among the shard's caption tables; None for the last one with text.

    Raises:
        TableError: if the shard has no such captions, or a table is damaged.
        StoreError: if the root cannot be read.
    """
    if stage and not stage.isdecimal():
        return stage
    tables = StoredShard(root, shard).caption_tables()
    names = [name for name, table in tables.items() if stage or table.is_text]
    number = int(stage) if stage else len(names)
    if not names:
        raise TableError(f"{root.url} contains no captions of shard {shard!r}: materialize them first")
    if not 1 <= number <= len(names):
        raise TableError(f"there is no stage {number} of shard {shard!r} in {root.url}: use one of {', '.join(names)}")
    return names[number - 1]


def pair_rows(a: StoredTable, b: StoredTable) -> list[Pair]:
    """Pair the rows that have the same time range of the same clip.

    Window ids are ignored, because they differ between two copies of a source.
    """
    left, right = ({_window(row): row for row in table.rows} for table in (a, b))
    windows = [*left, *(window for window in right if window not in left)]
    return [_pair(a, left.get(window), b, right.get(window)) for window in windows]


def comparison_page(comparison: Comparison) -> Page:
    """Build the page of the windows that differ, side by side."""
    provenance = SharedProvenance([None, None])
    rows = [comparison_row(comparison, pair, provenance) for pair in comparison.pairs if pair.kind != "same"]
    return Page(
        title=f"Comparison of {comparison.table}",
        subtitle=comparison.shard,
        sides=comparison.headings,
        marks_removed=True,
        figures=comparison.figures,
        facets=FACETS,
        provenance=list(provenance.found),
        rows=rows,
    )


def figures(statistics: Statistics) -> Properties:
    """Labels and values of the statistics."""
    return [
        ("rows in both", f"{statistics.both:,}"),
        *((kind, f"{count:,}") for kind, count in statistics.kinds.items()),
        *(
            (f"mean words in {name}", f"{mean:.1f}")
            for name, mean in zip("AB", statistics.words, strict=True)
            if mean is not None
        ),
        *((f"flagged in {name}", f"{count:,}") for name, count in zip("AB", statistics.flagged, strict=True)),
        *(
            (f"words in common, {share:.0%} quantile", f"{similarity:.0%}")
            for share, similarity in statistics.similarity.items()
        ),
    ]


def _window(row: CaptionRow) -> _Window:
    return row.clip_key, row.window_index, row.start_seconds, row.end_seconds


def _mean_words(table: StoredTable) -> float | None:
    return mean_words(table.captions) if table.is_text else None


def _pair(in_a: StoredTable, a: CaptionRow | None, in_b: StoredTable, b: CaptionRow | None) -> Pair:
    if a is None or b is None or a.caption is None or b.caption is None or in_a.has_choices or in_b.has_choices:
        return Pair(a, b, None)
    return Pair(a, b, diff_texts(_readable(in_a, a.caption), _readable(in_b, b.caption)))


def _readable(table: StoredTable, caption: str) -> str:
    """A caption as it is compared: JSON is indented, so that each field has a line."""
    return json.dumps(json.loads(caption), ensure_ascii=False, indent=2) if table.is_json else caption


def comparison_row(
    comparison: Comparison, pair: Pair, provenance: SharedProvenance, missing: str = "no such window"
) -> Row:
    """Build the row of a page for a pair. ``missing`` is shown where a version has no row."""
    found = [row for row in (pair.a, pair.b) if row]
    texts = (pair.difference.old, pair.difference.new) if pair.difference else (None, None)
    sides = [
        build_side(comparison.tables[column], row, text, provenance.index(column, row, comparison.prompt(column, row)))
        if row
        else Side(missing=missing)
        for column, (row, text) in enumerate(zip((pair.a, pair.b), texts, strict=True))
    ]
    return Row(
        name=found[0].clip_key,
        position=position(found[0].window_index, found[0].start_seconds, found[0].end_seconds),
        window_id=found[0].window_id,
        facets=(
            [pair.kind],
            sorted({row.error_kind for row in found if row.error_kind}),
            sorted({flag for side in sides for flag in side.flags}),
            sorted({note for side in sides for note in side.notes}),
        ),
        sides=sides,
        changed=pair.kind == "changed",
    )


def grid(found: Properties) -> Grid:
    """Labels and values in columns, for the terminal."""
    columns = Grid(show_header=False, box=None)
    columns.add_column()
    columns.add_column(justify="right")
    for label, value in found:
        columns.add_row(label, value)
    return columns


def _read_previews(a: StoredPreviews, b: StoredPreviews, window_ids: Sequence[str]) -> dict[str, Preview]:
    found = a.read(window_ids)
    return found | b.read([window_id for window_id in window_ids if window_id not in found])
