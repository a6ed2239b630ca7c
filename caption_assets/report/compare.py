"""Compare the captions of a shard in two roots, that is of two prompts or two models over one source.

    python -m caption_assets.report.compare ROOT_A ROOT_B SHARD

prints statistics and writes a page with the rows that differ, word for word.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table as Printed

from caption_assets.captioning.stages import STAGES
from caption_assets.errors import CaptionAssetsError
from caption_assets.report.comparison import Statistics, compare_roots, comparison_page, figures
from caption_assets.report.page import publish_page
from caption_assets.store.access import Access
from caption_assets.store.previews import read_posters
from caption_assets.store.root import Root


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root_a", help="a folder or s3://bucket/prefix, as CAPTION_ROOT")
    parser.add_argument("root_b", help="another")
    parser.add_argument("shard", help="its key")
    parser.add_argument(
        "--stage", type=int, choices=[stage.number for stage in STAGES], default=2, help="whose captions (default: 2)"
    )
    parser.add_argument("--output", type=Path, default=Path("compare.html"), help="the page (default: compare.html)")
    parser.add_argument("--profile", help="AWS profile, as CAPTION_ROOT_PROFILE (default: the standard AWS variables)")
    options = parser.parse_args()
    access = Access(profile=options.profile)
    try:
        a, b = (Root.open(url, access) for url in (options.root_a, options.root_b))
        run(a, b, options.shard, STAGES[options.stage - 1].name, options.output)
    except CaptionAssetsError as error:
        sys.exit(f"error: {error}")


def run(a: Root, b: Root, shard: str, table: str, output: Path) -> None:
    """Compare, print and write.

    Raises:
        TableError: if a root lacks the table.
        StoreError: if the page cannot be written.
    """
    comparison = compare_roots(a, b, shard, table)
    folder = Root.open(str(output.absolute().parent))
    publish_page(folder, output.name, comparison_page(comparison), partial(_posters, a, b, shard))
    console = Console()
    for name, place in zip("AB", comparison.places, strict=True):
        console.print(f"{name}: {table} of {shard} in {place}", markup=False, highlight=False, soft_wrap=True)
    console.print(printed(comparison.statistics))
    console.print(f"rows that differ, side by side: {output}", markup=False, highlight=False, soft_wrap=True)


def printed(statistics: Statistics) -> Printed:
    """Statistics as a table."""
    table = Printed(show_header=False, box=None)
    table.add_column()
    table.add_column(justify="right")
    for label, value in figures(statistics):
        table.add_row(label, value)
    return table


def _posters(a: Root, b: Root, shard: str, window_ids: Sequence[str]) -> dict[str, bytes]:
    found = read_posters(a, shard, window_ids)
    return found | read_posters(b, shard, [window_id for window_id in window_ids if window_id not in found])


if __name__ == "__main__":
    main()
