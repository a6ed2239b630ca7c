"""The versions of a stored table: of its data, its code and its inputs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256

import pyarrow.parquet as pq

from caption_assets.store.failure import translate_store_errors
from caption_assets.store.root import Root
from caption_assets.store.table_file import read_file_metadata
from caption_assets.store.tables import CaptionRow, ManifestRow, TableError, table_path

VERSIONS = "versions"
"""Key of the versions in a table's file metadata."""
FORMER_KINDS = {"upstream_failed": "stage1_failed"}
"""Error kinds that earlier releases named differently. Data versions contain the former name, and stay the same."""
FOOTER_BYTES = 64 << 10
"""Size of a request when a footer is read, in bytes. The footer of a caption table takes about 10 KB."""


@dataclass(frozen=True, slots=True)
class TableVersions:
    """The versions of one table of one shard."""

    data: str
    """Version of the table's content."""
    code: str
    """Version of the code and the settings that decide the content."""
    inputs: Mapping[str, str]
    """Data version of each input, by the input's asset."""

    def agree_with(self, record: TableVersions) -> bool:
        """Whether a record describes this table: it has the same versions, and the same or further inputs."""
        same_inputs = self.inputs.items() <= record.inputs.items()
        return (self.data, self.code) == (record.data, record.code) and same_inputs

    @property
    def file_metadata(self) -> dict[str, str]:
        """The versions as file metadata."""
        return {VERSIONS: json.dumps({"data": self.data, "code": self.code, "inputs": dict(self.inputs)})}

    @classmethod
    def from_file_metadata(cls, metadata: Mapping[str, str]) -> TableVersions | None:
        """The versions in file metadata; None if there are none, as in files of earlier releases."""
        try:
            found = json.loads(metadata[VERSIONS])
            inputs = {str(name): str(version) for name, version in found["inputs"].items()}
            return cls(str(found["data"]), str(found["code"]), inputs)
        except (KeyError, ValueError, TypeError, AttributeError):
            return None


def read_versions(root: Root, table: str, shard: str) -> TableVersions | None:
    """The versions of a shard's stored table.

    None if there is no table, or if it has no versions, as those of earlier releases do not.

    Raises:
        TableError: if the file's footer is damaged.
        StoreError: if it cannot be read.
    """
    metadata = read_footer(root, table, shard)
    return None if metadata is None else TableVersions.from_file_metadata(metadata)


def read_footer(root: Root, table: str, shard: str) -> dict[str, str] | None:
    """The file metadata of a shard's stored table, read from the file's footer alone; None if there is no table.

    Raises:
        TableError: if the footer is damaged.
        StoreError: if it cannot be read.
    """
    try:
        with open_footer(root, table, shard) as file:
            return read_file_metadata(file)
    except FileNotFoundError:
        return None


@contextmanager
def open_footer(root: Root, table: str, shard: str) -> Iterator[pq.ParquetFile]:
    """Open a shard's stored table to read its footer.

    Raises:
        FileNotFoundError: if there is no table.
        TableError: if the footer is damaged.
        StoreError: if it cannot be read.
    """
    path = table_path(table, shard)
    root.check_file(path)
    with translate_store_errors(f"cannot read {root.address(path)}"):
        try:
            with root.fs.open(root.full(path), "rb", block_size=FOOTER_BYTES) as source:
                yield pq.ParquetFile(source)
        except FileNotFoundError:
            raise
        except (ValueError, OSError) as error:
            # Arrow reports damage as a ValueError, and unparsable metadata as a plain OSError without an errno. A
            # store's OSErrors have one, except for its refusals, which are PermissionErrors.
            if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
                raise
            raise TableError(
                f"{root.address(path)} is damaged ({error}): remove it and materialize {table} of shard {shard!r} again"
            ) from error


def manifest_version(rows: Iterable[ManifestRow]) -> str:
    """The data version of a manifest."""
    version = ""
    for row in rows:
        version = next_manifest_version(version, row)
    return version


def next_manifest_version(version: str, row: ManifestRow) -> str:
    """The data version of a manifest after one more row; an empty manifest's is ``""``."""
    return sha256(f"{version}{row!r}".encode()).hexdigest()[:16]


def captions_version(rows: Iterable[CaptionRow]) -> str:
    """The data version of captions. It covers texts and errors, but not token counts and attempts."""
    kinds = ((row, FORMER_KINDS.get(row.error_kind or "", row.error_kind)) for row in rows)
    lines = "\n".join(f"{row.window_id} {row.status} {kind} {row.caption!r}" for row, kind in kinds)
    return sha256(lines.encode()).hexdigest()[:16]
