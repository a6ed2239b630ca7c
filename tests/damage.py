"""Damage to one stored file, made without the project's own code: with bytes, pyarrow, pandas and the file system."""

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
"""A function that changes or replaces the file at a path."""


def make_empty(path: Path) -> None:
    path.write_bytes(b"")


def truncate(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def replace_with_json(path: Path) -> None:
    path.write_bytes(b'{"this": "is something else"}\n')


def replace_with_invalid_utf8(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00\x80" * 8)


def replace_with_folder(path: Path) -> None:
    path.unlink()
    (path / "something").mkdir(parents=True)


def replace_with_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def invert_pages(path: Path) -> None:
    """Invert the bytes of every page of a Parquet file; the footer stays valid."""
    data = bytearray(path.read_bytes())
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for place in range(4, footer):
        data[place] ^= 0xFF
    path.write_bytes(data)


def change_texts(path: Path) -> None:
    """Change the texts of one column. The file is valid Parquet and keeps its metadata."""
    table, metadata = pq.read_table(path), pq.read_metadata(path).metadata
    column = "caption" if "caption" in table.column_names else "uri"
    texts = [text and f"{text[:-1]}#" for text in table[column].to_pylist()]
    place = table.schema.get_field_index(column)
    changed = table.set_column(place, table.schema.field(column), pa.array(texts))
    with pq.ParquetWriter(path, table.schema) as writer:
        writer.write_table(changed)
        writer.add_key_value_metadata({key: metadata[key] for key in metadata if key != b"ARROW:schema"})


def set_later_schema_version(path: Path) -> None:
    table = pq.read_table(path)
    later = {**(table.schema.metadata or {}), b"schema_version": b"99"}
    pq.write_table(table.replace_schema_metadata(later), path)


def remove_schema_version(path: Path) -> None:
    pq.write_table(pq.read_table(path).replace_schema_metadata({}), path)


def replace_with_pandas_table(path: Path) -> None:
    pd.DataFrame({"clip_key": ["a.mp4"], "caption": ["not of this shard"]}).to_parquet(path)


def drop_column(column: str) -> Damage:
    def damage(path: Path) -> None:
        table = pq.read_table(path)
        pq.write_table(table.drop_columns([column]), path)

    damage.__name__ = f"drop_column_{column}"
    return damage


def fill_with_text(column: str) -> Damage:
    """Replace a column's values, such as numbers, by a text."""

    def damage(path: Path) -> None:
        table = pq.read_table(path)
        place = table.schema.get_field_index(column)
        texts = pa.array(["some text"] * table.num_rows)
        pq.write_table(table.set_column(place, column, texts), path)

    damage.__name__ = f"fill_with_text_{column}"
    return damage


def fill_with_invalid_utf8(column: str) -> Damage:
    """Replace a column's texts by bytes that are not UTF-8."""

    def damage(path: Path) -> None:
        table = pq.read_table(path)
        place = table.schema.get_field_index(column)
        data = pa.array([b"\xff\xfe broken"] * table.num_rows)
        texts = pa.Array.from_buffers(pa.string(), len(data), data.buffers())
        pq.write_table(table.set_column(place, table.schema.field(column), texts), path)

    damage.__name__ = f"fill_with_invalid_utf8_{column}"
    return damage


def fill_with_nulls(column: str) -> Damage:
    """Remove the values of a column that is never null."""

    def damage(path: Path) -> None:
        table = pq.read_table(path)
        place = table.schema.get_field_index(column)
        nulls = pa.nulls(table.num_rows, table.schema.field(column).type)
        pq.write_table(table.set_column(place, column, nulls), path)

    damage.__name__ = f"fill_with_nulls_{column}"
    return damage


def edit_json(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Change a JSON record in place, or replace it by what ``change`` returns."""

    def damage(path: Path) -> None:
        found = json.loads(path.read_bytes())
        changed = change(found)
        path.write_text(json.dumps(found if changed is None else changed))

    return damage
