"""The format energon: webdataset tars with the indexes that Megatron Energon's ``energon prepare`` would make.

Source: docs/source/basic/data_prep.md and flavors/webdataset/indexing.py of NVIDIA/Megatron-Energon 7.4.1.
"""

from __future__ import annotations

import json
import sqlite3
import struct
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import yaml

from caption_assets.export.columns import StageColumns
from caption_assets.export.config import ExportConfig
from caption_assets.export.formats.layout import FormatLayout
from caption_assets.export.formats.webdataset import webdataset
from caption_assets.export.index import DATA, DATASET, shard_folder
from caption_assets.store.disk import temporary_folder
from caption_assets.store.root import Root

META = ".nv-meta"
"""Folder of the dataset's index, in the dataset's folder."""
OFFSETS = ".idx"
"""Suffix of the offsets of a tar's samples, after the tar's name."""
MEMBERS = ".members.json"
"""Suffix of the list of a tar's members, of which the dataset's index is made without reading the tars again."""
VERSION = "7.4.1"
"""Version of Megatron Energon whose index this is."""
PARALLEL_READS = 16
"""Number of lists of members read concurrently."""
_SCHEMA = """
CREATE TABLE samples (tar_file_id INTEGER NOT NULL, sample_key TEXT NOT NULL UNIQUE, sample_index INTEGER NOT NULL,
    byte_offset INTEGER, byte_size INTEGER);
CREATE TABLE sample_parts (tar_file_id INTEGER, sample_index INTEGER, part_name TEXT, content_byte_offset INTEGER,
    content_byte_size INTEGER);
CREATE INDEX idx_samples_by_tar_and_idx ON samples(tar_file_id, sample_index);
CREATE INDEX idx_sample_parts_seq ON sample_parts(tar_file_id, sample_index, content_byte_offset);
CREATE INDEX idx_sample_parts_full ON sample_parts(tar_file_id, sample_index, part_name, content_byte_offset,
    content_byte_size);
"""


def energon(export: ExportConfig, stages: tuple[StageColumns, ...]) -> FormatLayout:
    """The layout of energon."""
    return replace(
        webdataset(export, stages), name="webdataset tars with the index of Energon", file_indexes=tar_indexes
    )


def tar_indexes(path: Path) -> Iterator[tuple[str, bytes]]:
    """Suffix and content of the indexes of a tar."""
    with tarfile.open(path, "r:") as tar:
        members = [(*member.name.split(".", 1), member.offset, member.offset_data, member.size) for member in tar]
        end = tar.offset
    starts = [next(part)[2] for _, part in groupby(members, lambda member: member[0])]
    yield OFFSETS, struct.pack(f"<{len(starts) + 1}Q", *starts, end)
    yield MEMBERS, json.dumps({"members": members, "end": end}).encode()


def write_energon_index(root: Root, tars: Mapping[str, Sequence[str]]) -> None:
    """Write the index of the dataset.

    Args:
        root: the root with the dataset.
        tars: names of the tars of each shard.

    Raises:
        StoreError: if a list of members cannot be read, or the index cannot be written.
    """
    paths = [(shard, name) for shard, names in tars.items() for name in names]
    counts: dict[str, int] = {}
    with temporary_folder() as folder, ThreadPoolExecutor(PARALLEL_READS) as pool:
        file = folder / "index.sqlite"
        lists = pool.map(lambda path: root.read(f"{shard_folder(path[0])}/{path[1]}{MEMBERS}"), paths)
        with sqlite3.connect(file) as index:
            index.executescript(_SCHEMA)
            for number, ((shard, name), members) in enumerate(zip(paths, lists, strict=True)):
                counts[f"{DATA}/shard={shard}/{name}"] = _insert(index, number, json.loads(members))
        index.close()
        root.upload(f"{DATASET}/{META}/index.sqlite", file)
    documents = {
        ".info.json": json.dumps({"energon_version": VERSION, "shard_counts": counts}, indent=2),
        "dataset.yaml": yaml.safe_dump({"__module__": "megatron.energon", "__class__": "CrudeWebdataset"}),
        "split.yaml": yaml.safe_dump({"split_parts": {"train": list(counts), "val": [], "test": []}, "exclude": []}),
        "index.uuid": str(uuid5(NAMESPACE_URL, json.dumps(counts))),
    }
    for name, text in documents.items():
        root.write(f"{DATASET}/{META}/{name}", text.encode())


def _insert(index: sqlite3.Connection, tar: int, found: Mapping[str, Any]) -> int:
    """Insert the samples of a tar, and return their number."""
    samples = [(key, list(part)) for key, part in groupby(found["members"], lambda member: member[0])]
    ends = [part[0][2] for _, part in samples[1:]] + [found["end"]]
    index.executemany(
        "INSERT INTO samples VALUES (?, ?, ?, ?, ?)",
        (
            (tar, key, number, part[0][2], end - part[0][2])
            for number, ((key, part), end) in enumerate(zip(samples, ends, strict=True))
        ),
    )
    index.executemany(
        "INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)",
        (
            (tar, number, name, data, size)
            for number, (_, part) in enumerate(samples)
            for _, name, _, data, size in part
        ),
    )
    return len(samples)
