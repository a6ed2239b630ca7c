"""The command that compares the captions of a shard in two roots: statistics, and a page of the windows that differ."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table as Grid

from caption_assets.report.comparison import Statistics, compare_roots, comparison_page, figures
from caption_assets.report.page import publish_page
from caption_assets.store.previews import read_posters
from caption_assets.store.root import Root


def compare_captions(a: Root, b: Root, shard: str, table: str, output: Path) -> None:
    """Compare two roots, print the statistics and write the page.

    Raises:
        TableError: if a table is missing or damaged.
        StoreError: if the page cannot be written.
    """
    comparison = compare_roots(a, b, shard, table)
    folder = Root.open(str(output.absolute().parent))
    publish_page(folder, output.name, comparison_page(comparison), partial(_posters, a, b, shard))
    console = Console()
    for name, place in zip("AB", comparison.places, strict=True):
        console.print(f"{name}: {table} of {shard} in {place}", markup=False, highlight=False, soft_wrap=True)
    console.print(_grid(comparison.statistics))
    console.print(f"windows that differ, side by side: {output}", markup=False, highlight=False, soft_wrap=True)


def _grid(statistics: Statistics) -> Grid:
    grid = Grid(show_header=False, box=None)
    grid.add_column()
    grid.add_column(justify="right")
    for label, value in figures(statistics):
        grid.add_row(label, value)
    return grid


def _posters(a: Root, b: Root, shard: str, window_ids: Sequence[str]) -> dict[str, bytes]:
    found = read_posters(a, shard, window_ids)
    return found | read_posters(b, shard, [window_id for window_id in window_ids if window_id not in found])
