"""Damage to one file: each function leaves something else in its place."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

Damage = Callable[[Path], None]


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def foreign(path: Path) -> None:
    path.write_bytes(b'{"this": "is something else"}\n')


def not_utf8(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00\x80" * 8)


def a_folder(path: Path) -> None:
    path.unlink()
    (path / "something").mkdir(parents=True)


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def broken_pages(path: Path) -> None:
    """Turn over the bytes of every page; the footer stays."""
    data = bytearray(path.read_bytes())
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for place in range(4, footer):
        data[place] ^= 0xFF
    path.write_bytes(data)


def another_text(path: Path) -> None:
    """One text changed, in a file that Parquet takes for whole, with all the metadata of the one before."""
    table, metadata = pq.read_table(path), pq.read_metadata(path).metadata
    column = "caption" if "caption" in table.column_names else "uri"
    texts = [text and f"{text[:-1]}#" for text in table[column].to_pylist()]
    place = table.schema.get_field_index(column)
    changed = table.set_column(place, table.schema.field(column), pa.array(texts))
    with pq.ParquetWriter(path, table.schema) as writer:
        writer.write_table(changed)
        writer.add_key_value_metadata({key: metadata[key] for key in metadata if key != b"ARROW:schema"})


def a_later_schema(path: Path) -> None:
    table = pq.read_table(path)
    later = {**(table.schema.metadata or {}), b"schema_version": b"99"}
    pq.write_table(table.replace_schema_metadata(later), path)


def no_schema_version(path: Path) -> None:
    pq.write_table(pq.read_table(path).replace_schema_metadata({}), path)


def by_pandas(path: Path) -> None:
    """Written anew by pandas, which leaves out what it does not know."""
    pd.DataFrame({"clip_key": ["a.mp4"], "caption": ["not of this shard"]}).to_parquet(path)


def without(column: str) -> Damage:
    def damage(path: Path) -> None:
        table = pq.read_table(path)
        pq.write_table(table.drop_columns([column]), path)

    damage.__name__ = f"without_{column}"
    return damage


def with_text_in(column: str) -> Damage:
    """A column of numbers as texts."""

    def damage(path: Path) -> None:
        table = pq.read_table(path)
        place = table.schema.get_field_index(column)
        texts = pa.array(["some text"] * table.num_rows)
        pq.write_table(table.set_column(place, column, texts), path)

    damage.__name__ = f"with_text_in_{column}"
    return damage


def with_bytes_in(column: str) -> Damage:
    """A column of texts with bytes that are no UTF-8."""

    def damage(path: Path) -> None:
        table = pq.read_table(path)
        place = table.schema.get_field_index(column)
        data = pa.array([b"\xff\xfe broken"] * table.num_rows)
        texts = pa.Array.from_buffers(pa.string(), len(data), data.buffers())
        pq.write_table(table.set_column(place, table.schema.field(column), texts), path)

    damage.__name__ = f"with_bytes_in_{column}"
    return damage


def with_nothing_in(column: str) -> Damage:
    """A column that always has a value, without one."""

    def damage(path: Path) -> None:
        table = pq.read_table(path)
        place = table.schema.get_field_index(column)
        nothing = pa.nulls(table.num_rows, table.schema.field(column).type)
        pq.write_table(table.set_column(place, column, nothing), path)

    damage.__name__ = f"with_nothing_in_{column}"
    return damage


def record(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Another JSON record in place of the one that is there."""

    def damage(path: Path) -> None:
        found = json.loads(path.read_bytes())
        changed = change(found)
        path.write_text(json.dumps(found if changed is None else changed))

    return damage
