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
from caption_assets.export.config import ExportConfig
from caption_assets.export.formats.layout import EncodedSample, FormatLayout, Sample, features_of, sample_key, videos_of

VIDEO = "mp4"
"""Suffix of the clip in its sample, whatever its container: ``datasets`` turns each suffix into a column and requires
the same suffixes in all samples. Decoders detect the container."""


def webdataset(export: ExportConfig, stages: tuple[StageColumns, ...]) -> FormatLayout:
    """The layout of webdataset."""
    columns = window_columns(stages)

    def samples(clip: CaptionedClip) -> list[Sample]:
        windows = [window_record(window, stages) for window in clip.windows]
        return [Sample(sample_key(clip), {**clip_record(clip, CLIP_COLUMNS), "windows": windows})]

    return FormatLayout(
        name="webdataset tars",
        suffix="tar",
        videos=videos_of(export),
        write=write_tar,
        samples=samples,
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


def write_tar(file: IO[bytes], samples: Iterable[EncodedSample]) -> int:
    """Write a webdataset tar with two members for each sample: ``<key>.json`` and ``<key>.mp4``."""
    count = 0
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for sample in samples:
            for suffix, data in (("json", sample.record), (VIDEO, sample.video)):
                info = tarfile.TarInfo(f"{sample.key}.{suffix}")  # reproducible: it has no owner and no time
                info.size = len(data)
                tar.addfile(info, BytesIO(data))
            count += 1
    return count
