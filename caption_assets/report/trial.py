"""The trial of a recipe on a sample of a shard: statistics, and a page of stored and new captions side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from caption_assets.errors import number_of
from caption_assets.report.comparison import FACETS, Comparison, comparison_row, grid
from caption_assets.report.page import Page, Properties, ReadPreviews, Row, publish_page
from caption_assets.report.sides import SharedProvenance, stage_label
from caption_assets.store.root import Root

NOT_STORED = "no stored caption"


@dataclass(frozen=True, slots=True)
class Trial:
    """Captions of a sample, under the recipe that is tried and as they are stored."""

    shard: str
    recipe: str
    """Name of the recipe."""
    window_ids: Sequence[str]
    """Ids of the sampled windows, in the manifest's order."""
    windows: int
    """Number of readable windows of the shard."""
    comparisons: Sequence[Comparison]
    """The stored captions (A) and the new ones (B) of each stage, without the windows whose caption was reused."""
    only_stored: Sequence[str]
    """Names of stages that only the shard has."""
    only_new: Sequence[str]
    """Names of stages that only the recipe has."""


def report_trial(trial: Trial, read_previews: ReadPreviews, output: Path) -> None:
    """Print the statistics of a trial and write its page.

    Raises:
        StoreError: if the page cannot be written.
    """
    publish_page(Root.open(str(output.absolute().parent)), output.name, trial_page(trial), read_previews)
    console = Console()

    def tell(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    tell(f"{len(trial.window_ids)} of {number_of(trial.windows, 'window')} of {trial.shard}")
    for heading in _headings(trial):
        tell(heading)
    for comparison in trial.comparisons:
        tell(f"\n{comparison.table}")
        console.print(grid(comparison.figures if comparison.pairs else comparison.left_out))
    tell("")
    if trial.only_new:
        tell(f"stages of the recipe without stored captions: {', '.join(trial.only_new)}")
    if trial.only_stored:
        tell(f"stored stages that the recipe does not have: {', '.join(trial.only_stored)}")
    tell(f"page of both: {output}")


def trial_page(trial: Trial) -> Page:
    """Build the page of stored and new captions, window by window."""
    provenance = SharedProvenance([None, None])
    rows = [
        _row(comparison, comparison_row(comparison, pair, provenance, NOT_STORED))
        for comparison in trial.comparisons
        for pair in comparison.pairs
    ]
    order = {window_id: number for number, window_id in enumerate(trial.window_ids)}
    rows.sort(key=lambda row: order[row.window_id])  # the stages of a window stay in order
    return Page(
        title=f"Trial of the recipe {trial.recipe}",
        subtitle=trial.shard,
        sides=_headings(trial),
        marks_removed=True,
        figures=_figures(trial),
        facets=("Stage", *FACETS),
        provenance=list(provenance.found),
        rows=rows,
    )


def _headings(trial: Trial) -> tuple[str, str]:
    return "A: stored captions", f"B: recipe {trial.recipe}"


def _row(comparison: Comparison, row: Row) -> Row:
    """A row that names its stage."""
    label = stage_label(comparison.table)
    return replace(row, position=f"{label}, {row.position}", facets=[[label], *row.facets])


def _figures(trial: Trial) -> Properties:
    """The number of windows, and of changed captions by stage."""
    changed = [
        (f"changed in {stage_label(comparison.table)}", f"{comparison.statistics.kinds.get('changed', 0):,}")
        for comparison in trial.comparisons
    ]
    return [("windows", f"{len(trial.window_ids):,} of {trial.windows:,}"), *changed]
