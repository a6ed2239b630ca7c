"""A Parquet file of rows that carries a digest of them: damage is found wherever it lies in the file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from caption_assets.errors import CaptionAssetsError, printable

if TYPE_CHECKING:
    from hashlib import _Hash

SCHEMA_VERSION = "3"
ROW_GROUP = 1024
"""Rows that are written or read at a time: on their way a row takes some 3 KB of memory."""
ARROW_SCHEMA = b"ARROW:schema"
"""Key of Arrow's own entry in a file's metadata."""
DIGEST = b"rows_sha256"
"""Key of the digest of rows and facts in the file's metadata. Files of earlier releases have none."""


class TableError(CaptionAssetsError):
    """A table that is not there, or whose rows are not those it must have."""


def with_facts(schema: pa.Schema, facts: Mapping[str, str]) -> pa.Schema:
    """A schema whose files say which version it is, and ``facts``."""
    return schema.with_metadata({"schema_version": SCHEMA_VERSION, **facts})


def facts_of(file: pq.ParquetFile) -> dict[str, str]:
    """What was published with the rows as facts about the whole file."""
    facts = {**(file.schema_arrow.metadata or {}), **(file.metadata.metadata or {})}
    return {name.decode(): value.decode() for name, value in facts.items() if name not in (ARROW_SCHEMA, DIGEST)}


def write_table(
    sink: Path | pa.NativeFile,
    schema: pa.Schema,
    records: Iterable[Mapping[str, Any]],
    conclude: Callable[[], Mapping[str, str]] = dict,
) -> None:
    """Write rows as they come, at most ``ROW_GROUP`` of them in memory.

    Args:
        sink: where to.
        schema: the columns, and facts about the whole file as their metadata.
        records: the rows; fields that ``schema`` lacks are left out.
        conclude: further facts, computed after the last row.
    """
    digest = sha256()
    waiting = iter(records)
    with pq.ParquetWriter(sink, schema, write_page_checksum=True) as writer:
        while group := list(islice(waiting, ROW_GROUP)):
            batch = pa.RecordBatch.from_pylist(group, schema=schema)
            writer.write_batch(batch)
            _add_to_digest(digest, batch.to_pylist())
        further = conclude()
        written = {name.decode(): value.decode() for name, value in (schema.metadata or {}).items()}
        writer.add_key_value_metadata({**further, DIGEST.decode(): _end_digest(digest, {**written, **further})})


@dataclass(frozen=True, slots=True)
class TableFile:
    """A file of rows, opened and checked as far as that is possible without reading them."""

    file: pq.ParquetFile
    schema: pa.Schema
    """The columns it must have."""
    name: str
    """For messages, with the remedy."""
    remedy: str
    columns: pa.Schema
    """The columns as they stand in the file, and the facts about the whole file as their metadata.

    Read once: Arrow converts all of them each time that a file's ``schema_arrow`` is read, which takes 20 µs.
    """

    @classmethod
    def open(cls, source: str | bytes, schema: pa.Schema, *, name: str, remedy: str) -> TableFile:
        """Open a file.

        Args:
            source: its path on this machine, or its bytes.
            schema: the columns it must have. A file of an older version, or one with a digest, may lack some.
            name: of the file, for messages.
            remedy: an imperative phrase, for messages.

        Raises:
            TableError: if it is damaged, of a later version, or lacks columns.
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
    def facts(self) -> dict[str, str]:
        """What was published with the rows as facts about the whole file."""
        return facts_of(self.file)

    @property
    def version(self) -> str:
        """The version of the schema by which it was written."""
        return self.facts.get("schema_version", "unknown")

    def records(self) -> Iterator[dict[str, Any]]:
        """The rows, a few of them in memory at a time; columns that ``schema`` lacks are left out.

        Raises:
            TableError: if the file is damaged: at its end also where nothing but a digest tells.
        """
        known = [name for name in self.schema.names if name in self.columns.names]
        required = [field.name for field in self.schema if not field.nullable]
        digest = sha256()
        for group in range(self.file.num_row_groups):  # in one go, pyarrow would keep more the further it comes
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
            if written is not None and written != _end_digest(digest, self.facts).encode():
                raise ValueError("its rows are not those that were written")

    def _check(self) -> None:
        """Compare version and columns with those that are wanted."""
        if not self.version.isdecimal() or int(self.version) > int(SCHEMA_VERSION):
            raise TableError(
                f"{self.name} has schema version {self.version!r}, and this version of caption-assets reads up to "
                f"{SCHEMA_VERSION} (a later one may read it): {self.remedy}"
            )
        is_written_whole = DIGEST in (self.file.metadata.metadata or {}) or self.version != SCHEMA_VERSION
        missing = [field.name for field in self.schema if field.name not in self.columns.names]
        if missing and not is_written_whole:
            raise ValueError(f"it lacks columns: {', '.join(missing)}")
        for field in self.schema:
            if field.name in self.columns.names and self.columns.field(field.name).type != field.type:
                raise ValueError(f"column {field.name} is {self.columns.field(field.name).type}, not {field.type}")


def _add_to_digest(digest: _Hash, records: Iterable[Mapping[str, Any]]) -> None:
    for record in records:
        digest.update(repr(record).encode())


def _end_digest(digest: _Hash, facts: Mapping[str, str]) -> str:
    digest.update(repr(sorted(facts.items())).encode())
    return digest.hexdigest()


@contextmanager
def _damage(name: str, remedy: str) -> Iterator[None]:
    """Whatever Arrow raises of bytes that are at hand means that these are damaged.

    It has ArrowInvalid, OSError, UnicodeDecodeError, and MemoryError for a length that was hit.
    """
    try:
        yield
    except TableError:
        raise
    except Exception as error:
        raise TableError(f"{name} is damaged ({printable(str(error)) or type(error).__name__}): {remedy}") from error
