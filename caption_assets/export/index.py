"""The index of a shard's exported files, with their sizes and counts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

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
    not_cut: Mapping[str, str] = field(default_factory=dict)
    """The kind of error of each window file that cannot be made, by name. It is not tried again."""
    form: str = ""
    """Form of the files of samples; see ``ExportConfig.form``."""

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


def exported_shards(root: Root) -> list[str]:
    """The shards of the dataset, from one listing.

    Raises:
        StoreError: if the folder cannot be listed.
    """
    names = root.names(f"{DATASET}/{DATA}")
    return [name.removeprefix("shard=") for name in names if name.startswith("shard=")]


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


def file_sizes(root: Root, shard: str) -> dict[str, int]:
    """Size of each file in the shard's folder, by name."""
    try:
        found = list(root.entries(shard_folder(shard)))
    except FileNotFoundError:
        return {}
    return {entry["name"].rpartition("/")[2]: entry["size"] for entry in found if entry["type"] == "file"}


def is_complete(index: ExportIndex, sizes: Mapping[str, int]) -> bool:
    """Whether all files of the index exist with the right size."""
    return all(sizes.get(file.name) == file.bytes for file in index.files)


def remove_unlisted(root: Root, shard: str, index: ExportIndex | None, prefix: str = "") -> None:
    """Remove files of the shard that the index does not name.

    Args:
        root: the root with the dataset.
        shard: the shard's key.
        index: the shard's index, if it has one.
        prefix: start of the names of the files that may be removed.
    """
    kept = {INDEX, *(file.name for file in index.files)} if index else set[str]()
    names = [name for name in file_sizes(root, shard) if name.startswith(prefix) and name not in kept]
    root.remove_all([f"{shard_folder(shard)}/{name}" for name in names])
