"""The format webdataset: tars with one sample for each clip."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable
from functools import partial
from io import BytesIO
from typing import IO

from caption_assets.export.clip import CaptionedClip
from caption_assets.export.columns import (
    CLIP_COLUMNS,
    SHARD,
    VIDEO_COLUMNS,
    Column,
    Feature,
    StageColumns,
    clip_record,
    video_record,
    window_columns,
    window_record,
)
from caption_assets.export.config import ExportConfig
from caption_assets.export.formats.layout import (
    EncodedSample,
    FormatLayout,
    Sample,
    features_of,
    sample_key,
    videos_of,
    window_key,
)

VIDEO = "mp4"
"""Suffix of the clip in its sample, whatever its container: ``datasets`` turns each suffix into a column and requires
the same suffixes in all samples. Decoders detect the container."""
COPY_BYTES = 1 << 20
"""Size of the pieces in which a video is written; tarfile's own are 16 KiB."""
_FILE_COLUMNS = VIDEO_COLUMNS[1:]
"""The columns of a window's file without its path."""


def webdataset(export: ExportConfig, stages: tuple[StageColumns, ...]) -> FormatLayout:
    """The layout of webdataset: a sample is a clip, or a window if windows are cut."""
    record = _window_features(stages) if export.has_videos else _clip_features(stages)
    columns: tuple[tuple[str, tuple[Column, ...]], ...] = (
        ("`json`: the clip", (SHARD, *CLIP_COLUMNS)),
        ("`json.windows`: each of its windows, in order", window_columns(stages)),
    )
    if export.has_videos:
        columns = (columns[0], ("`json`: the window and its file", (*_FILE_COLUMNS, *window_columns(stages))))
    return FormatLayout(
        name="webdataset tars",
        suffix="tar",
        videos=videos_of(export),
        write=write_tar,
        samples=partial(_windows if export.has_videos else _clip, stages),
        features=[
            {"name": "json", "struct": record},
            {"name": VIDEO, "dtype": "video"},
            {"name": "__key__", "dtype": "string"},
            {"name": "__url__", "dtype": "string"},
        ],
        columns=columns,
    )


def _clip(stages: tuple[StageColumns, ...], clip: CaptionedClip) -> list[Sample]:
    """A clip with its windows as one sample."""
    windows = [window_record(window, stages) for window in clip.windows]
    return [Sample(sample_key(clip), {**clip_record(clip, CLIP_COLUMNS), "windows": windows})]


def _clip_features(stages: tuple[StageColumns, ...]) -> list[Feature]:
    return [*features_of(SHARD, *CLIP_COLUMNS), {"name": "windows", "list": features_of(*window_columns(stages))}]


def _windows(stages: tuple[StageColumns, ...], clip: CaptionedClip) -> list[Sample]:
    """The windows of a clip as samples."""
    shared = clip_record(clip, CLIP_COLUMNS)
    found = []
    for window in clip.windows:
        file = video_record(window.video, "") if window.video else {}
        own = {column.name: file.get(column.name) for column in _FILE_COLUMNS}
        found.append(Sample(window_key(clip, window), {**shared, **own, **window_record(window, stages)}, window))
    return found


def _window_features(stages: tuple[StageColumns, ...]) -> list[Feature]:
    return features_of(SHARD, *CLIP_COLUMNS, *_FILE_COLUMNS, *window_columns(stages))


def write_tar(file: IO[bytes], samples: Iterable[EncodedSample]) -> int:
    """Write a webdataset tar with two members for each sample: ``<key>.json`` and ``<key>.mp4``."""
    count = 0
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.copybufsize = COPY_BYTES  # type: ignore[attr-defined]  # public, but not in the stubs
        for sample in samples:
            for suffix, data in (("json", sample.record), (VIDEO, sample.video)):
                info = tarfile.TarInfo(f"{sample.key}.{suffix}")  # reproducible: it has no owner and no time
                info.size = len(data)
                tar.addfile(info, BytesIO(data))
            count += 1
    return count
