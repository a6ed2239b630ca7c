"""The index of a shard's exported files, with their sizes and counts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from caption_assets.store.root import Root

DATASET = "captioned_dataset"
"""Folder of the dataset below the root, and name of its asset."""
DATA = "data"
"""Folder of the samples within the dataset."""
INDEX = "index.json"


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """A file of samples."""

    name: str
    """Its name in the shard's folder."""
    bytes: int
    samples: int


@dataclass(frozen=True, slots=True)
class ExportIndex:
    """A shard's part of the dataset. It is written after its files, so that it names only complete files."""

    version: str
    """Version of the files' content."""
    clips: int
    """Number of clips with at least one exported window."""
    windows: int
    left_out: Mapping[str, int]
    """Number of windows that are left out, by reason."""
    files: tuple[ExportedFile, ...]
    corrections: Mapping[str, int] = field(default_factory=dict)
    """Number of people's corrections, by kind; see ``CorrectionCounts``."""
    tokens: Mapping[str, int] = field(default_factory=dict)
    """Lengths of the texts in tokens; see ``TokenTally``. Empty without a tokenizer."""

    @property
    def bytes(self) -> int:
        """Total size of the files, in bytes."""
        return sum(file.bytes for file in self.files)

    @property
    def samples(self) -> int:
        """Number of samples in all files."""
        return sum(file.samples for file in self.files)


def shard_folder(shard: str) -> str:
    """The folder of a shard's files, relative to the root.

    Its name is not the key alone, because ``datasets`` ignores folders that begin with two underscores.
    """
    return f"{DATASET}/{DATA}/shard={shard}"


def find_index(root: Root, shard: str) -> ExportIndex | None:
    """The index of a shard, if there is a valid one."""
    try:
        found = json.loads(root.read(f"{shard_folder(shard)}/{INDEX}"))
        return ExportIndex(**{**found, "files": tuple(ExportedFile(**file) for file in found["files"])})
    except (FileNotFoundError, ValueError, TypeError, KeyError):  # missing, or of another version
        return None


def write_index(root: Root, shard: str, index: ExportIndex) -> None:
    """Publish a shard's index, and with it the shard's files."""
    root.write(f"{shard_folder(shard)}/{INDEX}", json.dumps(asdict(index), indent=1).encode())


def is_complete(root: Root, shard: str, index: ExportIndex) -> bool:
    """Whether all files of the index exist with the right size."""
    sizes = dict(_files(root, shard))
    return all(sizes.get(file.name) == file.bytes for file in index.files)


def remove_unlisted(root: Root, shard: str, index: ExportIndex | None) -> None:
    """Remove files of the shard that the index does not name."""
    kept = {INDEX, *(file.name for file in index.files)} if index else set[str]()
    for name, _ in _files(root, shard):
        if name not in kept:
            root.remove(f"{shard_folder(shard)}/{name}")


def _files(root: Root, shard: str) -> list[tuple[str, Any]]:
    """Name and size of the files in the shard's folder."""
    try:
        found = list(root.entries(shard_folder(shard)))
    except FileNotFoundError:
        return []
    return [(entry["name"].rpartition("/")[2], entry["size"]) for entry in found if entry["type"] == "file"]
