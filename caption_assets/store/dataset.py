"""Tables of several shards as one Arrow table, whose column ``shard`` is a string."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike, fspath

import pyarrow as pa

from caption_assets.store.caption_columns import UPSTREAM
from caption_assets.store.root import Root
from caption_assets.store.table_file import TableFile
from caption_assets.store.tables import (
    FORMER_STAGE,
    FORMER_UPSTREAM,
    MANIFEST_VERSIONS,
    SHARD,
    TableError,
    load_table,
    published_schema,
    stored_shards,
)

PARALLEL_READS = 16
"""Number of files read concurrently. Each takes tens of milliseconds from object storage, mostly waiting."""


def read_table(
    root: Root | str | PathLike[str],
    table: str,
    shards: Iterable[str] | str | None = None,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """Read a table of all or of some shards.

    The shards have the given order, or that of their names, and the rows of each have the manifest's order. A column
    that the file of an earlier release lacks is null there, except ``shard``.

    Args:
        root: the root, or its URL: a local folder or ``s3://bucket/prefix``, opened with the standard AWS variables.
        table: name of the table: ``clip_manifest``, or a stage.
        shards: the shards to read. Default: all that have the table.
        columns: names of the columns to read, in this order. Default: all, with ``shard`` first.

    Raises:
        TableError: if the table, one of the shards or a column does not exist, or a file is damaged or of a version
            that cannot be read.
        StoreError: if the root cannot be read.
    """
    root = root if isinstance(root, Root) else Root.open(fspath(root))
    names = [shards] if isinstance(shards, str) else shards
    found = list(dict.fromkeys(_all_shards(root, table) if names is None else names))
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        parts = list(pool.map(lambda shard: _read_shard(root, table, shard, columns), found))
    whole = _concatenate(table, parts)
    if columns is None:
        return whole
    if unknown := [name for name in columns if name not in whole.column_names]:
        raise TableError(f"{table} has no column {unknown[0]!r}: read it without `columns` to see which it has")
    return whole.select(columns)


def _all_shards(root: Root, table: str) -> list[str]:
    if shards := stored_shards(root, table):
        return sorted(shards)
    tables = [name for name in root.names("") if any(part.startswith("shard=") for part in root.names(name))]
    others = ", ".join(name for name in tables if not name.startswith("_")) or "none"
    raise TableError(f"{root.address('')} has no table {table!r} (its tables: {others}): check both names")


def _read_shard(root: Root, table: str, shard: str, columns: Sequence[str] | None) -> pa.Table:
    """A shard's part of a table, with the columns of the present version."""
    with load_table(root, table, shard, MANIFEST_VERSIONS) as file:
        found = file.read(_stored_columns(file, columns))
        shards = pa.repeat(pa.scalar(shard, SHARD.type), file.file.metadata.num_rows)
    if FORMER_UPSTREAM in found.column_names:
        former = found[FORMER_UPSTREAM].combine_chunks()
        upstream = pa.StructArray.from_arrays([former], [FORMER_STAGE], mask=former.is_null())
        found = found.drop_columns(FORMER_UPSTREAM).append_column(UPSTREAM, upstream)
    return found.add_column(0, SHARD, shards)


def _stored_columns(file: TableFile, columns: Sequence[str] | None) -> set[str]:
    """The columns to read from a file. The shard is not: the path gives it, also in files of earlier releases."""
    wanted = set(file.columns.names if columns is None else columns) - {SHARD.name}
    return wanted | {FORMER_UPSTREAM} if UPSTREAM in wanted else wanted


def _concatenate(table: str, parts: Sequence[pa.Table]) -> pa.Table:
    try:
        return pa.concat_tables([published_schema(table).empty_table(), *parts], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise TableError(
            f"{table} has other columns in some shards, because its stage has changed ({error}): read these shards in "
            "a call of their own, or materialize the others again"
        ) from error
