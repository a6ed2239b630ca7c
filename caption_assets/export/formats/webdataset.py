"""The format webdataset: tars with one sample for each clip."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable
from io import BytesIO
from typing import IO

from caption_assets.export.clip import CaptionedClip
from caption_assets.export.columns import (
    CLIP_COLUMNS,
    SHARD,
    StageColumns,
    clip_record,
    window_columns,
    window_record,
)
from caption_assets.export.formats.layout import ClipSamples, FormatLayout, Record, Videos, features_of

VIDEO = "mp4"
"""Suffix of the clip in its sample, whatever its container: ``datasets`` turns each suffix into a column and requires
the same suffixes in all samples. Decoders detect the container."""


def webdataset(stages: tuple[StageColumns, ...]) -> FormatLayout:
    """The layout of webdataset."""
    columns = window_columns(stages)

    def records(clip: CaptionedClip) -> list[Record]:
        windows = [window_record(window, stages) for window in clip.windows]
        return [{**clip_record(clip, CLIP_COLUMNS), "windows": windows}]

    return FormatLayout(
        name="webdataset tars",
        suffix="tar",
        videos=Videos.INSIDE,
        write=write_tar,
        records=records,
        features=[
            {
                "name": "json",
                "struct": [
                    *features_of(SHARD, *CLIP_COLUMNS),
                    {"name": "windows", "list": features_of(*columns)},
                ],
            },
            {"name": VIDEO, "dtype": "video"},
            {"name": "__key__", "dtype": "string"},
            {"name": "__url__", "dtype": "string"},
        ],
        columns=(
            ("`json`: the clip", (SHARD, *CLIP_COLUMNS)),
            ("`json.windows`: each of its windows, in order", columns),
        ),
    )


def write_tar(file: IO[bytes], clips: Iterable[ClipSamples]) -> int:
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
