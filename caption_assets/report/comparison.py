"""Two tables of captions of one shard, from two roots: two models, or two prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from caption_assets.report.page import Facts, Page, Row, Side
from caption_assets.report.sides import SharedProvenance, mean_words, place, side
from caption_assets.report.text_diff import Difference, compare
from caption_assets.store.root import Root
from caption_assets.store.tables import CaptionRow, read_captions, read_facts

QUANTILES = (0.05, 0.25, 0.5, 0.75)
"""Of the similarity: at most this share of the rows is less similar."""
ARROW = "\N{RIGHTWARDS ARROW}"

_Window = tuple[str, int | None, float | None, float | None]


@dataclass(frozen=True, slots=True)
class Pair:
    """One window in both roots; at least one of the rows is there."""

    a: CaptionRow | None
    b: CaptionRow | None
    difference: Difference | None
    """Of the captions, if there are two."""

    @property
    def kind(self) -> str:
        """In a word or two, what became of A's row in B."""
        if self.a is None:
            return "only in B"
        if self.b is None:
            return "only in A"
        if self.a.status is not self.b.status:
            return f"{self.a.status} {ARROW} {self.b.status}"
        return "same" if self.a.caption == self.b.caption else "changed"


@dataclass(frozen=True, slots=True)
class Statistics:
    """What became of a table."""

    both: int
    """Rows of windows that are in both."""
    kinds: Mapping[str, int]
    """How many rows are of which kind, the most frequent first; see ``Pair.kind``."""
    words: tuple[float, float]
    """Mean words of a caption of A and of B; NaN where there is none."""
    flagged: tuple[int, int]
    """Rows with a quality flag."""
    similarity: Mapping[float, float]
    """Quantiles of the share of words that two captions have in common; empty if no window has two."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both tables, window by window."""

    shard: str
    table: str
    places: tuple[str, str]
    """The roots, as one would open them."""
    pairs: Sequence[Pair]
    """In the order of A, then what only B has."""
    prompts: tuple[str | None, str | None]
    """The instructions."""

    @property
    def statistics(self) -> Statistics:
        """What is to be said of the whole."""
        sides = [pair.a for pair in self.pairs if pair.a], [pair.b for pair in self.pairs if pair.b]
        similar = [pair.difference.similarity for pair in self.pairs if pair.difference]
        return Statistics(
            both=sum(pair.a is not None and pair.b is not None for pair in self.pairs),
            kinds=dict(Counter(pair.kind for pair in self.pairs).most_common()),
            words=(mean_words(sides[0]), mean_words(sides[1])),
            flagged=(_flagged(sides[0]), _flagged(sides[1])),
            similarity=dict(zip(QUANTILES, np.quantile(similar, QUANTILES).tolist(), strict=True)) if similar else {},
        )


def compare_roots(a: Root, b: Root, shard: str, table: str) -> Comparison:
    """Compare a table of a shard in two roots.

    Raises:
        TableError: if one of them is missing or damaged.
    """
    prompts = [read_facts(root, table, shard).get("prompt") for root in (a, b)]
    pairs = pair_rows(read_captions(a, table, shard), read_captions(b, table, shard))
    return Comparison(shard, table, (a.address(""), b.address("")), pairs, (prompts[0], prompts[1]))


def pair_rows(a: Iterable[CaptionRow], b: Iterable[CaptionRow]) -> list[Pair]:
    """Rows of the same stretch of the same clip, side by side.

    The windows' ids are not asked: they differ between two copies of a source.
    """
    left, right = ({_window(row): row for row in rows} for rows in (a, b))
    windows = [*left, *(window for window in right if window not in left)]
    return [_pair(left.get(window), right.get(window)) for window in windows]


def comparison_page(comparison: Comparison) -> Page:
    """The rows that differ, side by side."""
    makings = SharedProvenance(comparison.prompts)
    rows = [_row(pair, makings) for pair in comparison.pairs if pair.kind != "same"]
    return Page(
        title=f"Comparison of {comparison.table}",
        subtitle=comparison.shard,
        sides=(f"A: {comparison.places[0]}", f"B: {comparison.places[1]}"),
        removed=True,
        figures=figures(comparison.statistics),
        facets=("Change", "Error", "Flag"),
        makings=list(makings.found),
        rows=rows,
    )


def figures(statistics: Statistics) -> Facts:
    """Statistics for a person."""
    return [
        ("rows in both", f"{statistics.both:,}"),
        *((kind, f"{count:,}") for kind, count in statistics.kinds.items()),
        *((f"words in {name}", f"{mean:.1f}") for name, mean in zip("AB", statistics.words, strict=True)),
        *((f"flagged in {name}", f"{count:,}") for name, count in zip("AB", statistics.flagged, strict=True)),
        *((f"similarity, {share:.0%}", f"{similarity:.2f}") for share, similarity in statistics.similarity.items()),
    ]


def _window(row: CaptionRow) -> _Window:
    return row.clip_key, row.window_index, row.start_seconds, row.end_seconds


def _pair(a: CaptionRow | None, b: CaptionRow | None) -> Pair:
    if a is None or b is None or a.caption is None or b.caption is None:
        return Pair(a, b, None)
    return Pair(a, b, compare(a.caption, b.caption))


def _row(pair: Pair, makings: SharedProvenance) -> Row:
    found = [row for row in (pair.a, pair.b) if row]
    texts = (pair.difference.old, pair.difference.new) if pair.difference else (None, None)
    sides = [
        side(row, text, makings.number(column, row)) if row else Side(missing="no such window")
        for column, (row, text) in enumerate(zip((pair.a, pair.b), texts, strict=True))
    ]
    return Row(
        name=found[0].clip_key,
        place=place(found[0].window_index, found[0].start_seconds, found[0].end_seconds),
        window_id=found[0].window_id,
        facets=(
            [pair.kind],
            sorted({row.error_kind for row in found if row.error_kind}),
            sorted({flag for one in sides for flag in one.flags}),
        ),
        sides=(sides[0], sides[1]),
        changed=pair.difference is not None,
    )


def _flagged(rows: Iterable[CaptionRow]) -> int:
    return sum(bool(row.flags) for row in rows)
