"""What there is of a shard in the dataset: the files that count, and how much is in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from caption_assets.store.root import Root

DATASET = "captioned_dataset"
"""Folder of the dataset below the root, and its asset."""
DATA = "data"
"""Folder of the samples in there."""
INDEX = "index.json"


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """A file of samples."""

    name: str
    """In the shard's folder."""
    bytes: int
    samples: int


@dataclass(frozen=True, slots=True)
class Index:
    """A shard's part of the dataset; written after its files, so that it names whole ones."""

    version: str
    """Changes with the content of any of the files."""
    clips: int
    """Those of which there is a window."""
    windows: int
    left_out: Mapping[str, int]
    """Windows that are not in it: how many of them failed in which table, of what."""
    files: tuple[ExportedFile, ...]

    @property
    def bytes(self) -> int:
        """Length of all files."""
        return sum(file.bytes for file in self.files)

    @property
    def samples(self) -> int:
        """Number of samples in all files."""
        return sum(file.samples for file in self.files)


def shard_folder(shard: str) -> str:
    """Where a shard's files lie, relative to the root.

    The key alone would not do: ``datasets`` passes over folders that begin with two underscores.
    """
    return f"{DATASET}/{DATA}/shard={shard}"


def find_index(root: Root, shard: str) -> Index | None:
    """The index of a shard, if it was exported and the index can be read."""
    try:
        found = json.loads(root.read(f"{shard_folder(shard)}/{INDEX}"))
        return Index(**{**found, "files": tuple(ExportedFile(**file) for file in found["files"])})
    except (FileNotFoundError, ValueError, TypeError, KeyError):  # none, or not one of this version
        return None


def write_index(root: Root, shard: str, index: Index) -> None:
    """Publish a shard's files."""
    root.write(f"{shard_folder(shard)}/{INDEX}", json.dumps(asdict(index), indent=1).encode())


def is_whole(root: Root, shard: str, index: Index) -> bool:
    """Whether all its files are there, by their sizes."""
    sizes = dict(_files(root, shard))
    return all(sizes.get(file.name) == file.bytes for file in index.files)


def remove_others(root: Root, shard: str, index: Index | None) -> None:
    """Remove files of the shard that the index does not name."""
    kept = {INDEX, *(file.name for file in index.files)} if index else set[str]()
    for name, _ in _files(root, shard):
        if name not in kept:
            root.remove(f"{shard_folder(shard)}/{name}")


def _files(root: Root, shard: str) -> list[tuple[str, Any]]:
    """Name and length of what lies in the shard's folder."""
    try:
        found = list(root.entries(shard_folder(shard)))
    except FileNotFoundError:
        return []
    return [(entry["name"].rpartition("/")[2], entry["size"]) for entry in found if entry["type"] == "file"]
