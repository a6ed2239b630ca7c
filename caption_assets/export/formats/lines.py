"""The formats with a line for each window."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO

from caption_assets.export.clip import CaptionedClip
from caption_assets.export.columns import (
    CLIP_COLUMNS,
    CLIP_LOCATION_COLUMNS,
    SHARD,
    StageColumns,
    clip_record,
    window_columns,
    window_record,
)
from caption_assets.export.formats.layout import ClipSamples, FormatLayout, Record, Videos, features_of


def jsonl(stages: tuple[StageColumns, ...]) -> FormatLayout:
    """The layout of jsonl."""
    clip_columns, columns = CLIP_COLUMNS + CLIP_LOCATION_COLUMNS, window_columns(stages)

    def records(clip: CaptionedClip) -> list[Record]:
        shared = clip_record(clip, clip_columns)
        return [{**shared, **window_record(window, stages)} for window in clip.windows]

    return FormatLayout(
        name="JSON lines",
        suffix="jsonl",
        videos=Videos.SOURCE,
        write=write_lines,
        records=records,
        features=features_of(SHARD, *clip_columns, *columns),
        columns=(("The clip", (SHARD, *clip_columns)), ("The window", columns)),
    )


def write_lines(file: IO[bytes], clips: Iterable[ClipSamples]) -> int:
    """Write one JSON line per window."""
    samples = 0
    for clip in clips:
        file.writelines(record + b"\n" for record in clip.records)
        samples += len(clip.records)
    return samples
