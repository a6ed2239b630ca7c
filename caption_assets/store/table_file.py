"""Parquet files with a digest of their rows, which detects damage anywhere in the file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from enum import StrEnum
from hashlib import sha256
from itertools import islice
from pathlib import Path
from types import NoneType, TracebackType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from caption_assets.errors import CaptionAssetsError, printable

if TYPE_CHECKING:
    from hashlib import _Hash

SCHEMA_VERSION = "3"
ROW_GROUP = 1024
"""Number of rows written or read at a time: each takes about 3 KB of memory."""
ARROW_SCHEMA = b"ARROW:schema"
"""Key of Arrow's own entry in a file's metadata."""
DIGEST = b"rows_sha256"
"""Key of the digest of rows and metadata in the file metadata. Files of earlier releases have none."""
ARROW_TYPES: Mapping[type, pa.DataType] = {
    str: pa.string(),
    bool: pa.bool_(),
    int: pa.int32(),
    float: pa.float64(),
}
"""Column type by annotation; an annotation such as ``Annotated[int, pa.int64()]`` gives another type."""


class TableError(CaptionAssetsError):
    """A table that is missing, damaged, or inconsistent with the tables it was made from."""


def row_schema(kind: type[Any]) -> pa.Schema:
    """The columns of a row dataclass, in the order of its fields.

    The columns of optional fields and of sequences are nullable. Types are those of ``ARROW_TYPES``; the column of an
    enum of strings is a string column, and that of a sequence is a list column.

    Raises:
        TypeError: if an annotation has no column type.
    """
    hints = get_type_hints(kind, include_extras=True)
    return pa.schema([_column(field.name, hints[field.name]) for field in fields(kind)])


def _column(name: str, hint: Any) -> pa.Field:
    inner, is_optional = _without_none(hint)
    found = _arrow_type(inner)
    if found is None:
        raise TypeError(f"column {name}: {hint} has no Arrow type; annotate it: Annotated[..., pa.string()]")
    return pa.field(name, found, nullable=is_optional or pa.types.is_list(found))


def _without_none(hint: Any) -> tuple[Any, bool]:
    """An annotation without None, and whether it allowed None."""
    if get_origin(hint) not in (Union, UnionType):
        return hint, False
    [inner] = [part for part in get_args(hint) if part is not NoneType]
    return inner, True


def _arrow_type(hint: Any) -> pa.DataType | None:
    if get_origin(hint) is Annotated:
        return next((extra for extra in get_args(hint)[1:] if isinstance(extra, pa.DataType)), None)
    if get_origin(hint) is Sequence:
        element = _arrow_type(get_args(hint)[0])
        return element and pa.list_(element)
    return pa.string() if isinstance(hint, type) and issubclass(hint, StrEnum) else ARROW_TYPES.get(hint)


def with_file_metadata(schema: pa.Schema, metadata: Mapping[str, str]) -> pa.Schema:
    """A schema with file metadata: ``metadata`` and the schema's version."""
    return schema.with_metadata({"schema_version": SCHEMA_VERSION, **metadata})


def read_file_metadata(file: pq.ParquetFile) -> dict[str, str]:
    """The file metadata that was published with the rows."""
    found = {**(file.schema_arrow.metadata or {}), **(file.metadata.metadata or {})}
    return {name.decode(): value.decode() for name, value in found.items() if name not in (ARROW_SCHEMA, DIGEST)}


def write_table(
    sink: Path | pa.NativeFile,
    schema: pa.Schema,
    records: Iterable[Mapping[str, Any]],
    final_metadata: Callable[[], Mapping[str, str]] = dict,
) -> None:
    """Write a stream of rows, with at most ``ROW_GROUP`` of them in memory.

    Args:
        sink: the target.
        schema: the columns, with the file metadata as its metadata.
        records: the rows; fields that ``schema`` lacks are dropped.
        final_metadata: called after the last row for further file metadata.
    """
    digest = sha256()
    remaining = iter(records)
    with pq.ParquetWriter(sink, schema, write_page_checksum=True) as writer:
        while group := list(islice(remaining, ROW_GROUP)):
            batch = pa.RecordBatch.from_pylist(group, schema=schema)
            writer.write_batch(batch)
            _add_to_digest(digest, batch.to_pylist())
        further = final_metadata()
        written = {name.decode(): value.decode() for name, value in (schema.metadata or {}).items()}
        writer.add_key_value_metadata({**further, DIGEST.decode(): _end_digest(digest, {**written, **further})})


@dataclass(frozen=True, slots=True)
class TableFile:
    """An open file of rows, validated as far as possible without reading them."""

    file: pq.ParquetFile
    schema: pa.Schema
    """The required columns."""
    name: str
    """The file's name, for messages."""
    remedy: str
    """The remedy, for messages."""
    columns: pa.Schema
    """The file's columns, with the file metadata as the schema's metadata.

    They are read once, because each access to ``schema_arrow`` converts them again, which takes 20 µs.
    """

    @classmethod
    def open(cls, source: str | bytes, schema: pa.Schema, *, name: str, remedy: str) -> TableFile:
        """Open a file.

        Args:
            source: its local path, or its bytes.
            schema: the required columns. A file of an older version, or one with a digest, may lack some.
            name: the file's name, for messages.
            remedy: an imperative phrase, for messages.

        Raises:
            TableError: if it is damaged, has a later version, or lacks columns.
        """
        with _damage(name, remedy):
            opened = pq.ParquetFile(
                pa.BufferReader(source) if isinstance(source, bytes) else source, page_checksum_verification=True
            )
            found = cls(opened, schema, name, remedy, opened.schema_arrow)
            found._check()
        return found

    def __enter__(self) -> TableFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()

    @property
    def file_metadata(self) -> dict[str, str]:
        """The file metadata that was published with the rows."""
        return read_file_metadata(self.file)

    @property
    def version(self) -> str:
        """The schema version of the release that wrote it."""
        return self.file_metadata.get("schema_version", "unknown")

    def records(self, optional: Collection[str] = ()) -> Iterator[dict[str, Any]]:
        """A stream of the rows.

        Args:
            optional: names of further columns. The rows have those that the file has, and no others that ``schema``
                lacks.

        Raises:
            TableError: if the file is damaged. Damage that only the digest shows is reported after the last row.
        """
        known = [name for name in (*self.schema.names, *optional) if name in self.columns.names]
        required = [field.name for field in self.schema if not field.nullable]
        digest = sha256()
        for group in range(self.file.num_row_groups):  # over all groups at once, pyarrow's memory would grow
            batches = self.file.iter_batches(ROW_GROUP, row_groups=[group])
            while True:
                with _damage(self.name, self.remedy):
                    if (batch := next(batches, None)) is None:
                        break
                    if empty := [name for name in required if batch.column(name).null_count]:
                        raise ValueError(f"rows without {', '.join(empty)}")
                    records = batch.to_pylist()
                    _add_to_digest(digest, records)
                yield from ({name: record[name] for name in known} for record in records)
        with _damage(self.name, self.remedy):
            written = (self.file.metadata.metadata or {}).get(DIGEST)
            if written is not None and written != _end_digest(digest, self.file_metadata).encode():
                raise ValueError("its rows do not match their digest")

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """A stream of the rows with those columns, up to ``ROW_GROUP`` at a time. Their digest is not verified.

        Raises:
            TableError: if a page is damaged.
        """
        for group in range(self.file.num_row_groups):  # as in ``records``
            batches = self.file.iter_batches(ROW_GROUP, row_groups=[group], columns=list(columns))
            while True:
                with _damage(self.name, self.remedy):
                    if (batch := next(batches, None)) is None:
                        break
                yield batch

    def read(self, columns: Collection[str]) -> pa.Table:
        """Those of ``columns`` that the file has, in the file's order. The digest of the rows is not verified.

        Raises:
            TableError: if a page is damaged.
        """
        with _damage(self.name, self.remedy):
            return self.file.read([name for name in self.columns.names if name in columns])

    def _check(self) -> None:
        """Check version and columns."""
        if not self.version.isdecimal() or int(self.version) > int(SCHEMA_VERSION):
            raise TableError(
                f"{self.name} has schema version {self.version!r}, but this release of caption-assets reads versions "
                f"up to {SCHEMA_VERSION} (a later release may read it): {self.remedy}"
            )
        may_lack_columns = DIGEST in (self.file.metadata.metadata or {}) or self.version != SCHEMA_VERSION
        missing = [field.name for field in self.schema if field.name not in self.columns.names]
        if missing and not may_lack_columns:
            raise ValueError(f"it lacks columns: {', '.join(missing)}")
        for field in self.schema:
            if field.name in self.columns.names and self.columns.field(field.name).type != field.type:
                found = self.columns.field(field.name).type
                raise ValueError(f"the type of column {field.name} is {found} instead of {field.type}")


def _add_to_digest(digest: _Hash, records: Iterable[Mapping[str, Any]]) -> None:
    for record in records:
        digest.update(repr(record).encode())


def _end_digest(digest: _Hash, metadata: Mapping[str, str]) -> str:
    digest.update(repr(sorted(metadata.items())).encode())
    return digest.hexdigest()


@contextmanager
def _damage(name: str, remedy: str) -> Iterator[None]:
    """Report any error of Arrow as damage: the bytes are local, so that there is no other cause.

    Arrow raises ArrowInvalid, OSError, UnicodeDecodeError, and MemoryError for a damaged length.
    """
    try:
        yield
    except TableError:
        raise
    except Exception as error:
        raise TableError(f"{name} is damaged ({printable(str(error)) or type(error).__name__}): {remedy}") from error
