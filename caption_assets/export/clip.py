"""The exported clips of a shard: each clip's windows with captions of both stages, streamed from the tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby, zip_longest

from caption_assets.captioning.recipe_file import STAGE1, STAGE2, TABLE_NAMES
from caption_assets.store.root import Root
from caption_assets.store.table_file import TableFile
from caption_assets.store.tables import (
    CLIP_MANIFEST,
    CaptionRow,
    ManifestRow,
    Status,
    TableError,
    caption_rows,
    extent,
    manifest_rows,
    open_table,
)


@dataclass(frozen=True, slots=True)
class CaptionedWindow:
    """A window with its row in each table."""

    row: ManifestRow
    stage1: CaptionRow
    stage2: CaptionRow

    @property
    def failure(self) -> str | None:
        """The first table in which the window failed, with the kind of error; None if it has both captions."""
        rows: tuple[ManifestRow | CaptionRow, ...] = (self.row, self.stage1, self.stage2)
        for table, row in zip(TABLE_NAMES, rows, strict=True):
            if row.status is Status.FAILED:
                return f"{table}: {row.error_kind}"
        return None


@dataclass(frozen=True, slots=True)
class CaptionedClip:
    """A clip of a shard."""

    shard: str
    row: ManifestRow
    """The manifest row of its first window, for the clip's location and properties."""
    windows: tuple[CaptionedWindow, ...]
    """The windows with both captions."""
    left_out: tuple[str, ...]
    """The table and kind of error of each window that is left out."""


@dataclass(frozen=True, slots=True)
class ShardTables:
    """A snapshot of the three tables of a shard."""

    shard: str
    manifest: TableFile
    stage1: TableFile
    stage2: TableFile

    def clips(self) -> Iterator[CaptionedClip]:
        """The shard's clips in the manifest's order.

        Raises:
            TableError: if a table was made from an earlier version of the previous table.
        """
        for _, windows in groupby(self._windows(), key=lambda window: window.row.clip_key):
            found = [(window, window.failure) for window in windows]
            yield CaptionedClip(
                self.shard,
                found[0][0].row,
                tuple(window for window, failure in found if failure is None),
                tuple(failure for _, failure in found if failure is not None),
            )

    def _windows(self) -> Iterator[CaptionedWindow]:
        tables = manifest_rows(self.manifest), caption_rows(self.stage1), caption_rows(self.stage2)
        for row, stage1, stage2 in zip_longest(*tables):
            if row is None or stage1 is None or extent(row) != extent(stage1):
                raise self._outdated(STAGE1.name, CLIP_MANIFEST)
            if stage2 is None or extent(row) != extent(stage2):
                raise self._outdated(STAGE2.name, CLIP_MANIFEST)
            if stage2.status is Status.OK and stage2.upstream_fingerprints != {STAGE1.name: stage1.fingerprint}:
                raise self._outdated(STAGE2.name, STAGE1.name)
            yield CaptionedWindow(row, stage1, stage2)

    def _outdated(self, table: str, source: str) -> TableError:
        return TableError(
            f"{table} of shard {self.shard!r} is older than its {source}: materialize {table} for it again"
        )


@contextmanager
def open_tables(root: Root, shard: str) -> Iterator[ShardTables]:
    """A shard's tables, copied to the local disk until the block ends.

    Raises:
        TableError: if one has not been materialized, or is damaged.
    """
    with ExitStack() as files:
        yield ShardTables(shard, *(files.enter_context(open_table(root, table, shard)) for table in TABLE_NAMES))
