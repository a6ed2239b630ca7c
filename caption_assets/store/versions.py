"""The versions of a stored table: its own, its code's, and those of the inputs that it was made from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256

import pyarrow.parquet as pq

from caption_assets.store.failure import translate_store_errors
from caption_assets.store.root import Root
from caption_assets.store.tables import CaptionRow, ManifestRow, TableError, facts_of, table_path

FACT = "versions"
"""Key of the versions in a table's file metadata."""
FOOTER_BYTES = 64 << 10
"""Bytes fetched at a time to read a footer; that of a caption table takes about 10 KB."""


@dataclass(frozen=True, slots=True)
class TableVersions:
    """The versions of one table of one shard."""

    data: str
    """Changes with the table's content."""
    code: str
    """Changes with the code and the settings that decide the content."""
    inputs: Mapping[str, str]
    """Data version of each input, by the input's asset."""

    def agree_with(self, record: TableVersions) -> bool:
        """Whether a record may be of this table: it is of the same versions, and may name further inputs."""
        same_inputs = self.inputs.items() <= record.inputs.items()
        return (self.data, self.code) == (record.data, record.code) and same_inputs

    @property
    def facts(self) -> dict[str, str]:
        """As file metadata."""
        return {FACT: json.dumps({"data": self.data, "code": self.code, "inputs": dict(self.inputs)})}

    @classmethod
    def from_facts(cls, facts: Mapping[str, str]) -> TableVersions | None:
        """The versions in file metadata; None for a file without them, such as one of an earlier release."""
        try:
            found = json.loads(facts[FACT])
            inputs = {str(name): str(version) for name, version in found["inputs"].items()}
            return cls(str(found["data"]), str(found["code"]), inputs)
        except (KeyError, ValueError, TypeError, AttributeError):
            return None


def read_versions(root: Root, table: str, shard: str) -> TableVersions | None:
    """The versions of a shard's stored table, from the file's footer.

    None if there is no table, or if it has no versions, as those of earlier releases.

    Raises:
        TableError: if the footer is damaged.
        StoreError: if it cannot be read.
    """
    path = table_path(table, shard)
    root.check_file(path)
    with translate_store_errors(f"cannot read {root.address(path)}"):
        try:
            with root.fs.open(root.full(path), "rb", block_size=FOOTER_BYTES) as source:
                return TableVersions.from_facts(facts_of(pq.ParquetFile(source)))
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            # Arrow's errors of damaged files: most are ValueErrors; of metadata that it cannot parse a plain OSError,
            # which unlike a store's has no number. A store's refusal is a PermissionError, also without one.
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
    """The data version of a manifest with one more row; that of no rows is empty."""
    return sha256(f"{version}{row!r}".encode()).hexdigest()[:16]


def captions_version(rows: Iterable[CaptionRow]) -> str:
    """The data version of captions: changes when a caption does; token counts and attempts are no part of it."""
    said = "\n".join(f"{row.window_id} {row.status} {row.error_kind} {row.caption!r}" for row in rows)
    return sha256(said.encode()).hexdigest()[:16]
