"""The merged file: the lines of all exported shards as the one file that a trainer reads."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from caption_assets.export.config import ExportConfig, Format
from caption_assets.export.formats import layout_of
from caption_assets.export.formats.chat import DATASET_INFO_FILE
from caption_assets.export.formats.energon import META, tar_indexes, write_energon_index
from caption_assets.export.formats.layout import FormatLayout, MergedFile
from caption_assets.export.formats.lines import PRESETS
from caption_assets.export.index import DATA, DATASET, ExportIndex, find_index, shard_folder
from caption_assets.store.disk import temporary_folder
from caption_assets.store.root import Root

PARALLEL_READS = 16
"""Number of indexes read concurrently."""
NAMES = (
    "dataset.jsonl",
    "dataset.csv",
    "cosmos.jsonl",
    "chat.jsonl",
    "conversations.jsonl",
    DATASET_INFO_FILE,
    *(preset.merged for preset in PRESETS.values()),
)
"""The files that merging writes into the dataset's folder, in any format."""
_SHARD = "shard="


@dataclass(frozen=True, slots=True)
class MergedDataset:
    """The result of a merge."""

    path: str
    """The file, or the folder of the index, relative to the root."""
    shards: int
    samples: int
    others: tuple[str, ...]
    """Shards that were exported in another format or with other columns, and are not part of it."""


def merge_dataset(root: Root, export: ExportConfig) -> MergedDataset | None:
    """Write the file of the whole dataset from the files of all exported shards.

    Args:
        root: the root with the dataset.
        export: the settings of the export.

    Returns:
        What was written; None if the format has no such file.

    Raises:
        StoreError: if a shard's files cannot be read, or the file cannot be written.
    """
    layout = layout_of(export)
    if layout.merged is None and export.format is not Format.ENERGON:
        return None
    found = dict(_indexes(root))
    others = tuple(shard for shard, index in found.items() if index.form != export.form)
    indexes = {shard: index for shard, index in found.items() if index.form == export.form}
    if layout.merged is None:
        path = META
        write_energon_index(root, {shard: _samples(index, layout) for shard, index in indexes.items()})
    else:
        path = layout.merged.name
        _write(root, layout, layout.merged, indexes)
        for name, content in layout.merged.companions.items():
            root.write(f"{DATASET}/{name}", content)
    return MergedDataset(f"{DATASET}/{path}", len(indexes), sum(index.samples for index in indexes.values()), others)


def remove_merged(root: Root, kept: FormatLayout | None = None) -> None:
    """Remove the merged files.

    Args:
        root: the root with the dataset.
        kept: the format of those to keep.

    Raises:
        StoreError: if one cannot be removed.
    """
    merged = kept.merged if kept else None
    own = {merged.name, *merged.companions} if merged else set()
    for name in root.names(DATASET):
        if name in NAMES and name not in own:
            root.remove(f"{DATASET}/{name}")
        elif name == META and (kept is None or kept.file_indexes is not tar_indexes):
            root.remove_folder(f"{DATASET}/{name}")


def _indexes(root: Root) -> Iterator[tuple[str, ExportIndex]]:
    """Name and index of each exported shard."""
    shards = [name.removeprefix(_SHARD) for name in root.names(f"{DATASET}/{DATA}") if name.startswith(_SHARD)]
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        for shard, index in zip(shards, pool.map(lambda shard: find_index(root, shard), shards), strict=True):
            if index is not None:
                yield shard, index


def _samples(index: ExportIndex, layout: FormatLayout) -> list[str]:
    """The names of a shard's files of samples."""
    return [file.name for file in index.files if file.name.endswith(f".{layout.suffix}") and file.samples]


def _write(root: Root, layout: FormatLayout, merged: MergedFile, indexes: dict[str, ExportIndex]) -> None:
    with temporary_folder() as folder:
        target, part = folder / "merged", folder / "part"
        with target.open("wb") as file:
            file.write(b"[\n" if merged.is_json else merged.header)
            is_first = True
            for shard, index in indexes.items():
                for name in _samples(index, layout):
                    root.download(f"{shard_folder(shard)}/{name}", part)
                    _append(file, part, merged, is_first=is_first)
                    is_first = False
            if merged.is_json:
                file.write(b"\n]\n")
        root.upload(f"{DATASET}/{merged.name}", target)


def _append(file: IO[bytes], part: Path, merged: MergedFile, *, is_first: bool) -> None:
    with part.open("rb") as lines:
        lines.seek(len(merged.header))
        if not merged.is_json:
            shutil.copyfileobj(lines, file)
            return
        for number, line in enumerate(lines):
            file.write((b"" if is_first and number == 0 else b",\n") + line.rstrip(b"\n"))
