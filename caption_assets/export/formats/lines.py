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
from caption_assets.export.formats.layout import EncodedSample, FormatLayout, Sample, Videos, features_of, window_key


def jsonl(stages: tuple[StageColumns, ...]) -> FormatLayout:
    """The layout of jsonl."""
    clip_columns, columns = CLIP_COLUMNS + CLIP_LOCATION_COLUMNS, window_columns(stages)

    def samples(clip: CaptionedClip) -> list[Sample]:
        shared = clip_record(clip, clip_columns)
        return [
            Sample(window_key(clip, window), {**shared, **window_record(window, stages)}, window)
            for window in clip.windows
        ]

    return FormatLayout(
        name="JSON lines",
        suffix="jsonl",
        videos=Videos.SOURCE,
        write=write_lines,
        samples=samples,
        features=features_of(SHARD, *clip_columns, *columns),
        columns=(("The clip", (SHARD, *clip_columns)), ("The window", columns)),
    )


def write_lines(file: IO[bytes], samples: Iterable[EncodedSample]) -> int:
    """Write one JSON line per sample."""
    count = 0
    for sample in samples:
        file.write(sample.record + b"\n")
        count += 1
    return count
