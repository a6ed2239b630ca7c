"""Checkpoints: finished captions of a shard in progress, stored in small files until its tables are published."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import pyarrow as pa

from caption_assets.store.caption_columns import NO_COLUMNS, CaptionColumns
from caption_assets.store.failure import StoreError
from caption_assets.store.root import Root
from caption_assets.store.table_file import TableFile, with_file_metadata, write_table
from caption_assets.store.tables import (
    CAPTION_SCHEMA,
    SCHEMA_VERSION,
    CaptionFile,
    CaptionRow,
    TableError,
    caption_records,
    caption_schema,
)

_log = logging.getLogger(__name__)
_NAME = re.compile(r"([0-9]{6,})-[0-9]{6,}-([a-z][a-z0-9_]*)\.parquet")


@dataclass(frozen=True, slots=True)
class _Part:
    """A checkpoint file."""

    name: str
    epoch: int
    """Epoch of the lease under which it was written."""
    table: str


def checkpoint_folder(shard: str) -> str:
    """The folder of a shard's checkpoints and lease, relative to the root."""
    return f"_checkpoints/shard={shard}"


def write_checkpoint(
    root: Root,
    shard: str,
    epoch: int,
    number: int,
    rows: Mapping[str, Sequence[CaptionRow]],
    metadata: Mapping[str, str],
    columns: Mapping[str, CaptionColumns] = MappingProxyType({}),
) -> None:
    """Write finished rows, one file for each table.

    Args:
        root: the root.
        shard: the shard's key.
        epoch: epoch of the lease, which is part of the file names: those of two writers differ.
        number: number of the checkpoint within the epoch, from 0.
        rows: the rows by table, in the recipe's order.
        metadata: file metadata.
        columns: the columns of the stages, by table.

    Raises:
        StoreError: if the root cannot be written.
    """
    for table, made in rows.items():  # in this order: a killed writer leaves no row without those that it needs
        if made:
            sink, own = pa.BufferOutputStream(), columns.get(table, NO_COLUMNS)
            write_table(sink, with_file_metadata(caption_schema(own), metadata), caption_records(made, own))
            name = f"{epoch:06}-{number:06}-{table}.parquet"
            root.write(f"{checkpoint_folder(shard)}/{name}", sink.getvalue().to_pybytes())


def read_checkpoints(root: Root, shard: str, warn: Callable[[str], None] = _log.warning) -> Iterator[CaptionFile]:
    """All checkpoints of a shard, the oldest first.

    Args:
        root: the root.
        shard: the shard's key.
        warn: called with a message for each file that is damaged or has another schema version; it is skipped.

    Raises:
        StoreError: if a file exists but cannot be read. It is not skipped, because its rows may be intact.
    """
    for part in _parts(root.files(checkpoint_folder(shard))):
        path = f"{checkpoint_folder(shard)}/{part.name}"
        try:
            data = root.read(path)
        except FileNotFoundError:  # another run has published the shard meanwhile
            continue
        try:
            yield _read(data, part.table, root.address(path))
        except TableError as error:
            warn(f"{shard}: {error}")


def _read(data: bytes, table: str, place: str) -> CaptionFile:
    remedy = "its captions are generated again"
    with TableFile.open(data, CAPTION_SCHEMA, name=place, remedy=remedy) as file:
        if file.version != SCHEMA_VERSION:
            raise TableError(f"{place} has schema version {file.version}, not {SCHEMA_VERSION}: {remedy}")
        return CaptionFile.read(table, file)


def remove_checkpoints(root: Root, shard: str, epoch: int, tables: Collection[str]) -> None:
    """Remove the checkpoints of an epoch and of all earlier ones.

    Args:
        root: the root.
        shard: the shard's key.
        epoch: epoch of the lease.
        tables: names of the published tables. Checkpoints of other tables are kept: their rows are in no table yet.

    Raises:
        StoreError: if a file cannot be removed, after the others are removed.
    """
    failure: StoreError | None = None
    for part in _parts(root.names(checkpoint_folder(shard))):
        if part.epoch <= epoch and part.table in tables:
            try:
                root.remove(f"{checkpoint_folder(shard)}/{part.name}")
            except StoreError as error:
                failure = error
    if failure:
        raise failure


def _parts(names: Iterable[str]) -> list[_Part]:
    """The checkpoint files, the oldest first. Files and folders of other names are ignored."""
    parts = [_Part(name[0], int(name[1]), name[2]) for name in map(_NAME.fullmatch, names) if name]
    return sorted(parts, key=lambda part: (part.epoch, part.name))
