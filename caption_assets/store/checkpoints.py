"""Captions of a shard under way, kept in small parts until its tables are published."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa

from caption_assets.store.failure import StoreError
from caption_assets.store.root import Root
from caption_assets.store.table_file import TableFile, with_facts, write_table
from caption_assets.store.tables import SCHEMA_VERSION, CaptionRow, TableError, caption_rows, schema_of

_log = logging.getLogger(__name__)
_NAME = re.compile(r"([0-9]{6,})-[0-9]{6,}-([a-z][a-z0-9_]*)\.parquet")


@dataclass(frozen=True, slots=True)
class _Part:
    """A file of kept rows."""

    name: str
    epoch: int
    """Of the lease under which it was written."""
    table: str


def checkpoint_folder(shard: str) -> str:
    """Where a shard's checkpoints and its lease lie, relative to the root."""
    return f"_checkpoints/shard={shard}"


def write_part(root: Root, shard: str, epoch: int, number: int, rows: Mapping[str, Sequence[CaptionRow]]) -> None:
    """Keep finished rows, those of each table in a file of their own.

    Args:
        root: where to.
        shard: the shard's key.
        epoch: of the lease under which they were made, so that no two writers take the same name.
        number: of the part, from 0, unlike those of the same epoch.
        rows: by table, in any order.

    Raises:
        StoreError: if the place cannot be written.
    """
    for table, made in sorted(rows.items()):  # stage 1 first: a writer that is killed leaves no stage 2 without it
        if made:
            sink = pa.BufferOutputStream()
            write_table(sink, with_facts(schema_of(table), {}), map(asdict, made))
            name = f"{epoch:06}-{number:06}-{table}.parquet"
            root.write(f"{checkpoint_folder(shard)}/{name}", sink.getvalue().to_pybytes())


def read_parts(root: Root, shard: str, warn: Callable[[str], None] = _log.warning) -> Iterator[tuple[str, CaptionRow]]:
    """Every row that was kept, the oldest first.

    Args:
        root: where they were kept.
        shard: the shard's key.
        warn: receives a message about each part that is damaged or of another version: its rows are made again.

    Raises:
        StoreError: if a part is there and the store does not give it. Its rows may be whole.
    """
    for part in _parts(root.files(checkpoint_folder(shard))):
        path = f"{checkpoint_folder(shard)}/{part.name}"
        try:
            data = root.read(path)
        except FileNotFoundError:  # another run has published the shard meanwhile
            continue
        try:
            rows = _read(data, part.table, root.address(path))
        except TableError as error:
            warn(f"{shard}: {error}")
        else:
            yield from ((part.table, row) for row in rows)


def _read(data: bytes, table: str, place: str) -> list[CaptionRow]:
    remedy = "its captions are made again"
    with TableFile.open(data, schema_of(table), name=place, remedy=remedy) as file:
        if file.version != SCHEMA_VERSION:
            raise TableError(f"{place} has schema version {file.version}, not {SCHEMA_VERSION}: {remedy}")
        return list(caption_rows(file))  # all of them or none: a broken page makes the others doubtful


def remove_parts(root: Root, shard: str, epoch: int) -> None:
    """Remove the parts of an epoch and of all before it.

    Raises:
        StoreError: if one cannot be removed; the others are.
    """
    failure: StoreError | None = None
    for part in _parts(root.names(checkpoint_folder(shard))):
        if part.epoch <= epoch:
            try:
                root.remove(f"{checkpoint_folder(shard)}/{part.name}")
            except StoreError as error:
                failure = error
    if failure:
        raise failure


def _parts(names: Iterable[str]) -> list[_Part]:
    """The parts, the oldest first. Files and folders of other names are not the project's and stay where they are."""
    parts = [_Part(name[0], int(name[1]), name[2]) for name in map(_NAME.fullmatch, names) if name]
    return sorted(parts, key=lambda part: (part.epoch, part.name))
