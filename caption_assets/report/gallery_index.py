"""The index of a root's galleries: an HTML page of shards with their counts, which the server renders on request.

A page lists at most ``PAGE`` shards, so that its cost is bounded: one listing of the folder of galleries, and the
footers of these shards' tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow.parquet as pq

from caption_assets.errors import CaptionAssetsError
from caption_assets.report.page import render_static
from caption_assets.report.sides import stage_heading
from caption_assets.sources.shard import KEY_PATTERN
from caption_assets.store.previews import GALLERY, PARALLEL_READS
from caption_assets.store.root import Root
from caption_assets.store.tables import CLIP_MANIFEST
from caption_assets.store.versions import open_footer

PAGE = 100
"""Maximum number of shards on a page."""
CAPTION = "caption"
"""Name of the column with the captions."""


@dataclass(frozen=True, slots=True)
class ShardCounts:
    """The counts of a shard. None where a table is missing or damaged."""

    shard: str
    windows: int | None
    """Number of rows of the manifest."""
    captions: Sequence[int | None]
    """Number of captions of each stage."""


def render_index(root: Root, stages: Sequence[str], find: str = "", number: int = 1) -> str:
    """Render a page of the index.

    Args:
        root: the root.
        stages: names of the recipe's stages, in order.
        find: part of the names of the shards to list.
        number: number of the page, from 1. A number past the end gives the last page.

    Raises:
        StoreError: if the root cannot be listed.
    """
    names = (name for name in root.names(GALLERY) if KEY_PATTERN.fullmatch(name) and name != "index.html")
    found = [name for name in names if find.lower() in name.lower()]
    last = max(-(-len(found) // PAGE), 1)
    number = min(max(number, 1), last)
    shown = found[(number - 1) * PAGE : number * PAGE]
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        counts = list(pool.map(lambda shard: count_shard(root, shard, stages), shown))
    return render_static(
        "index.html",
        ("page.css", "index.css"),
        root=root.url,
        headings=[stage_heading(stage) for stage in stages],
        shards=counts,
        total=len(found),
        find=find,
        number=number,
        last=last,
    )


def count_shard(root: Root, shard: str, stages: Sequence[str]) -> ShardCounts:
    """Count the rows and captions of a shard, from the footers of its tables alone."""
    return ShardCounts(shard, _count(root, CLIP_MANIFEST, shard), [_count(root, stage, shard) for stage in stages])


def _count(root: Root, table: str, shard: str) -> int | None:
    """The number of captions in a table, or of rows of the manifest; None if the table is missing or damaged."""
    try:
        with open_footer(root, table, shard) as file:
            rows: int = file.metadata.num_rows
            return rows if table == CLIP_MANIFEST else rows - _nulls(file.metadata)
    except (FileNotFoundError, CaptionAssetsError):
        return None


def _nulls(metadata: pq.FileMetaData) -> int:
    """Number of rows without a caption, from the statistics of the column."""
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    return sum(column.statistics.null_count for column in columns if column.path_in_schema == CAPTION)
