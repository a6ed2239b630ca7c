"""Captions of a shard under way, kept in small parts until its tables are published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from caption_assets.store.root import Root
from caption_assets.store.tables import (
    SCHEMA_VERSION,
    SCHEMAS,
    CaptionRow,
    Table,
    batches,
    caption_rows,
    schema_version,
    with_facts,
)

_SUFFIX = ".parquet"


def checkpoint_folder(shard: str) -> str:
    """Where a shard's checkpoints and its lease lie, relative to the root."""
    return f"_checkpoints/shard={shard}"


def write_part(root: Root, shard: str, epoch: int, number: int, rows: Mapping[Table, Sequence[CaptionRow]]) -> None:
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
            with pq.ParquetWriter(sink, with_facts(SCHEMAS[table], {})) as writer:
                for batch in batches(SCHEMAS[table], made):
                    writer.write_batch(batch)
            name = f"{epoch:06}-{number:06}-{table}{_SUFFIX}"
            root.write(f"{checkpoint_folder(shard)}/{name}", sink.getvalue().to_pybytes())


def read_parts(root: Root, shard: str) -> Iterator[tuple[Table, CaptionRow]]:
    """Every row that was kept, the oldest first. Parts by another version of the tables are passed over."""
    for name in _part_names(root, shard):
        try:
            file = pq.ParquetFile(pa.BufferReader(root.read(f"{checkpoint_folder(shard)}/{name}")))
        except FileNotFoundError:  # another run has published the shard meanwhile
            continue
        if schema_version(file) == SCHEMA_VERSION:
            table = Table(name.removesuffix(_SUFFIX).split("-")[2])
            yield from ((table, row) for row in caption_rows(file))


def remove_parts(root: Root, shard: str, epoch: int) -> None:
    """Remove the parts of an epoch and of all before it."""
    for name in _part_names(root, shard):
        if int(name.split("-")[0]) <= epoch:
            root.remove(f"{checkpoint_folder(shard)}/{name}")


def _part_names(root: Root, shard: str) -> list[str]:
    return [name for name in root.names(checkpoint_folder(shard)) if name.endswith(_SUFFIX)]
