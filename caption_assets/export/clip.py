"""The exported clips of a shard: each clip's windows with the captions of all stages, streamed from the tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby, zip_longest
from typing import Any

from caption_assets.captioning.stages import Stage
from caption_assets.store.caption_columns import UPSTREAM
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
    captions: Mapping[str, CaptionRow]
    """Its caption of each stage, in the order of the stages."""

    @property
    def failure(self) -> str | None:
        """The first table in which the window failed, with the kind of error; None if it has all captions."""
        rows: dict[str, ManifestRow | CaptionRow] = {CLIP_MANIFEST: self.row, **self.captions}
        return next((f"{table}: {row.error_kind}" for table, row in rows.items() if row.status is Status.FAILED), None)


@dataclass(frozen=True, slots=True)
class CaptionedClip:
    """A clip of a shard."""

    shard: str
    row: ManifestRow
    """The manifest row of its first window, for the clip's location and properties."""
    windows: tuple[CaptionedWindow, ...]
    """The windows with all captions."""
    left_out: tuple[str, ...]
    """The table and kind of error of each window that is left out."""


@dataclass(frozen=True, slots=True)
class ShardTables:
    """A snapshot of the tables of a shard."""

    shard: str
    manifest: TableFile
    stages: tuple[Stage, ...]
    captions: tuple[TableFile, ...]
    """The table of each stage."""

    def clips(self) -> Iterator[CaptionedClip]:
        """The shard's clips in the manifest's order.

        Raises:
            TableError: if a table was made from an earlier version of another one.
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
        names = [stage.name for stage in self.stages]
        rows: Iterator[tuple[Any, ...]] = zip_longest(manifest_rows(self.manifest), *map(caption_rows, self.captions))
        for row, *captions in rows:
            for name, caption in zip(names, captions, strict=True):
                if row is None or caption is None or extent(row) != extent(caption):
                    raise self._outdated(name, CLIP_MANIFEST)
            found = dict(zip(names, captions, strict=True))
            for stage in self.stages:
                self._check_upstream(stage, found)
            yield CaptionedWindow(row, found)

    def _check_upstream(self, stage: Stage, captions: Mapping[str, CaptionRow]) -> None:
        """Check that a stage's caption was made from the present captions of the stages that it needs."""
        row = captions[stage.name]
        made_from = row.upstream_fingerprints or {}
        for need in stage.needs:
            if row.status is Status.OK and made_from.get(need) != captions[need].fingerprint:
                raise self._outdated(stage.name, need)

    def _outdated(self, table: str, source: str) -> TableError:
        return TableError(
            f"{table} of shard {self.shard!r} is older than its {source}: materialize {table} for it again"
        )


@contextmanager
def open_tables(root: Root, shard: str, stages: tuple[Stage, ...]) -> Iterator[ShardTables]:
    """A shard's tables, copied to the local disk until the block ends.

    Raises:
        TableError: if one has not been materialized, is damaged, or lacks columns of its stage's output.
    """
    with ExitStack() as files:
        manifest, *captions = (
            files.enter_context(open_table(root, table, shard))
            for table in (CLIP_MANIFEST, *(stage.name for stage in stages))
        )
        for stage, file in zip(stages, captions, strict=True):
            if missing := set(stage.columns.schema.names) - {UPSTREAM} - set(file.columns.names):
                raise TableError(
                    f"{file.name} lacks the columns {', '.join(sorted(missing))}, because stage {stage.name} had "
                    f"another output: materialize {stage.name} for shard {shard!r} again"
                )
        yield ShardTables(shard, manifest, stages, tuple(captions))
