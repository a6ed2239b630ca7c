"""The formats of the dataset: webdataset tars and JSON lines."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from typing import IO, Any

from caption_assets.export.clip import CaptionedClip
from caption_assets.export.columns import (
    CLIP_COLUMNS,
    CLIP_LOCATION_COLUMNS,
    SHARD,
    WINDOW_COLUMNS,
    Column,
    Feature,
    StageColumns,
    clip_record,
    stage_columns,
    window_record,
)
from caption_assets.export.config import ExportConfig, Format

VIDEO = "mp4"
"""Suffix of the clip in its sample, whatever its container: ``datasets`` turns each suffix into a column and requires
the same suffixes in all samples. Decoders detect the container."""

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ClipSamples:
    """The samples of a clip, ready to be written."""

    key: str
    """Unique key of the clip in the dataset."""
    records: tuple[bytes, ...]
    """JSON records, one for each sample."""
    video: bytes
    """The clip's bytes; empty in a format without clips."""

    @property
    def size(self) -> int:
        """Total size, in bytes."""
        return sum(map(len, self.records)) + len(self.video)


def _write_tar(file: IO[bytes], clips: Iterable[ClipSamples]) -> int:
    """Write a webdataset tar with one sample per clip: ``<key>.json`` and ``<key>.mp4``."""
    samples = 0
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for clip in clips:
            for suffix, data in zip(("json", VIDEO), (*clip.records, clip.video), strict=True):
                info = tarfile.TarInfo(f"{clip.key}.{suffix}")  # reproducible: it has no owner and no time
                info.size = len(data)
                tar.addfile(info, BytesIO(data))
            samples += 1
    return samples


def _write_lines(file: IO[bytes], clips: Iterable[ClipSamples]) -> int:
    """Write one JSON line per window."""
    samples = 0
    for clip in clips:
        file.writelines(record + b"\n" for record in clip.records)
        samples += len(clip.records)
    return samples


@dataclass(frozen=True, slots=True)
class FormatLayout:
    """The layout of one format."""

    name: str
    """Its name, for descriptions."""
    suffix: str
    """Suffix of its files."""
    contains_clips: bool
    """Whether the files contain the clips."""
    write: Callable[[IO[bytes], Iterable[ClipSamples]], int]
    """Writes a file of samples, and returns their number."""
    records: Callable[[CaptionedClip], list[Record]]
    """The records of a clip, one for each sample."""
    features: list[Feature]
    """Types of the columns, for the front matter of the card."""
    columns: tuple[tuple[str, tuple[Column, ...]], ...]
    """The columns by heading, for the card's tables."""


def _tars(stages: tuple[StageColumns, ...]) -> FormatLayout:
    window_columns = _window_columns(stages)

    def records(clip: CaptionedClip) -> list[Record]:
        windows = [window_record(window, stages) for window in clip.windows]
        return [{**clip_record(clip, CLIP_COLUMNS), "windows": windows}]

    return FormatLayout(
        name="webdataset tars",
        suffix="tar",
        contains_clips=True,
        write=_write_tar,
        records=records,
        features=[
            {
                "name": "json",
                "struct": [
                    *_features(SHARD, *CLIP_COLUMNS),
                    {"name": "windows", "list": _features(*window_columns)},
                ],
            },
            {"name": VIDEO, "dtype": "video"},
            {"name": "__key__", "dtype": "string"},
            {"name": "__url__", "dtype": "string"},
        ],
        columns=(
            ("`json`: the clip", (SHARD, *CLIP_COLUMNS)),
            ("`json.windows`: each of its windows, in order", window_columns),
        ),
    )


def _json_lines(stages: tuple[StageColumns, ...]) -> FormatLayout:
    clip_columns, window_columns = CLIP_COLUMNS + CLIP_LOCATION_COLUMNS, _window_columns(stages)

    def records(clip: CaptionedClip) -> list[Record]:
        shared = clip_record(clip, clip_columns)
        return [{**shared, **window_record(window, stages)} for window in clip.windows]

    return FormatLayout(
        name="JSON lines",
        suffix="jsonl",
        contains_clips=False,
        write=_write_lines,
        records=records,
        features=_features(SHARD, *clip_columns, *window_columns),
        columns=(("The clip", (SHARD, *clip_columns)), ("The window", window_columns)),
    )


def _window_columns(stages: tuple[StageColumns, ...]) -> tuple[Column, ...]:
    return (*WINDOW_COLUMNS, *(column for columns in stages for column in columns.columns.values()))


def _features(*columns: Column) -> list[Feature]:
    return [column.feature for column in columns]


_LAYOUTS = {Format.WEBDATASET: _tars, Format.JSONL: _json_lines}


def layout_of(export: ExportConfig) -> FormatLayout:
    """The layout of an export's format for its stages.

    Raises:
        CaptionAssetsError: if two stages have a column of the same name.
    """
    return _LAYOUTS[export.format](stage_columns(export.graph.stages))


def sample_key(clip: CaptionedClip) -> str:
    """A clip's key in the dataset: 24 hex digits, a hash of its shard, name and content.

    The clip's own name is not usable. webdataset ends a key at the first dot, and names are untrusted.
    """
    identity = json.dumps([clip.shard, clip.row.clip_key, clip.row.content_tag])
    return sha256(identity.encode()).hexdigest()[:24]


def encode_record(record: Record) -> bytes:
    """A record as one JSON line."""
    return json.dumps(record, ensure_ascii=False).encode()
