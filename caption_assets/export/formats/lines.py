"""The formats with a line for each window: JSON lines and CSV, with chosen columns or those of a trainer."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from typing import IO, Any

from caption_assets.export.clip import CaptionedClip
from caption_assets.export.columns import (
    CLIP_COLUMNS,
    CLIP_LOCATION_COLUMNS,
    SHARD,
    VIDEO_COLUMNS,
    Column,
    StageColumns,
    clip_record,
    video_record,
    window_columns,
    window_record,
)
from caption_assets.export.config import ExportConfig, Format
from caption_assets.export.formats.column_map import (
    CONSTANT,
    ColumnMap,
    check_columns,
    map_features,
    map_record,
    names_in,
)
from caption_assets.export.formats.layout import (
    EncodedSample,
    FormatLayout,
    MergedFile,
    Record,
    Sample,
    check_own_files,
    encode_record,
    features_of,
    videos_of,
    window_key,
)

CSV_COLUMNS = ("shard", "clip_key", "window_index", "window_id", "start_frame", "end_frame", "caption", "caption_stage")
"""The columns of csv without own ones, followed by those of the video file or of the clip's location."""
_NAMES = frozenset({"shard", "clip_key", "uri", "video"})
"""Columns with names of files and clips."""


@dataclass(frozen=True, slots=True)
class Preset:
    """The file that a trainer reads."""

    trainer: str
    merged: str
    """Name of the file of the whole dataset."""
    columns: ColumnMap


# Sources of the columns: docs/how-to/export.md. Trainers that resolve paths against the working directory, or against a
# folder of fixed name, get full paths: Format.has_full_paths.
PRESETS = {
    Format.LTX: Preset("LTX-2's trainer", "ltx.jsonl", {"video": "video", "caption": "caption"}),
    Format.VIDEOX_FUN: Preset(
        "VideoX-Fun", "videox-fun.csv", {"file_path": "video", "text": "caption", "type": {"const": "video"}}
    ),
    Format.FASTVIDEO: Preset(
        "FastVideo",
        "videos2caption.json",
        {
            "path": "video",
            "cap": "caption",
            "resolution": {"width": "video_width", "height": "video_height"},
            "fps": "video_fps",
            "duration": "video_seconds",
            "num_frames": "video_frames",
        },
    ),
    Format.OPEN_SORA: Preset(
        "Open-Sora",
        "open-sora.csv",
        {
            "path": "video",
            "text": "caption",
            "num_frames": "video_frames",
            "height": "video_height",
            "width": "video_width",
            "aspect_ratio": "video_aspect_ratio",
            "resolution": "video_pixels",
            "fps": "video_fps",
        },
    ),
    Format.MUSUBI: Preset("musubi-tuner", "musubi.jsonl", {"video_path": "video", "caption": "caption"}),
}


def jsonl(export: ExportConfig, stages: tuple[StageColumns, ...]) -> FormatLayout:
    """The layout of jsonl."""
    merged = MergedFile("dataset.jsonl")
    if export.columns:
        return _mapped(export, stages, export.columns, "JSON lines", merged)
    samples = window_samples(export, stages)
    return FormatLayout(
        name="JSON lines",
        suffix="jsonl",
        videos=videos_of(export),
        write=write_lines,
        samples=lambda clip: list(samples(clip)),
        features=features_of(SHARD, *_place_columns(export), *window_columns(stages)),
        columns=(("The clip", (SHARD, *_place_columns(export))), ("The window", window_columns(stages))),
        merged=merged,
    )


def csv_lines(export: ExportConfig, stages: tuple[StageColumns, ...]) -> FormatLayout:
    """The layout of csv."""
    place = VIDEO_COLUMNS if export.has_videos else CLIP_LOCATION_COLUMNS
    names = (*CSV_COLUMNS, *(column.name for column in place))
    return _mapped(export, stages, export.columns or {name: name for name in names}, "CSV", MergedFile("dataset.csv"))


def preset(export: ExportConfig, stages: tuple[StageColumns, ...]) -> FormatLayout:
    """The layout of a trainer's preset."""
    found = PRESETS[export.format]
    merged = MergedFile(found.merged, is_json=found.merged.endswith(".json"))
    layout = _mapped(export, stages, found.columns, f"lines for {found.trainer}", merged)

    def samples(clip: CaptionedClip) -> list[Sample]:
        check_own_files(clip)
        return layout.samples(clip)

    return replace(layout, samples=samples)


def window_samples(
    export: ExportConfig, stages: tuple[StageColumns, ...]
) -> Callable[[CaptionedClip], Iterator[Sample]]:
    """The function that gives each window of a clip as a sample with all columns."""
    clip_columns = CLIP_COLUMNS if export.has_videos else CLIP_COLUMNS + CLIP_LOCATION_COLUMNS

    def samples(clip: CaptionedClip) -> Iterator[Sample]:
        shared = clip_record(clip, clip_columns)
        for window in clip.windows:
            record = {**shared, **window_record(window, stages)}
            if window.video is not None:
                record |= video_record(window.video, export.trainer_path(window.video.path))
            yield Sample(window_key(clip, window), record, window)

    return samples


def line_columns(export: ExportConfig, stages: tuple[StageColumns, ...]) -> tuple[Column, ...]:
    """The columns of such a sample."""
    return (SHARD, *_place_columns(export), *window_columns(stages))


def write_lines(file: IO[bytes], samples: Iterable[EncodedSample], *, header: bytes = b"") -> int:
    """Write the header, and one line per sample."""
    file.write(header)
    count = 0
    for sample in samples:
        file.write(sample.record + b"\n")
        count += 1
    return count


def one_line(text: str) -> str:
    """A text as one line, for formats and trainers that read each line as a text of its own."""
    return " ".join(text.split())


def _mapped(
    export: ExportConfig, stages: tuple[StageColumns, ...], columns: ColumnMap, name: str, merged: MergedFile
) -> FormatLayout:
    """The layout of lines with mapped columns."""
    known = {column.name: column for column in line_columns(export, stages)}
    check_columns(columns, known)
    all_columns = window_samples(export, stages)

    is_csv = merged.name.endswith(".csv")

    def samples(clip: CaptionedClip) -> list[Sample]:
        found = ((sample, _one_line_texts(sample.record) if is_csv else sample.record) for sample in all_columns(clip))
        return [replace(sample, record=map_record(columns, record)) for sample, record in found]

    header = _csv_line(columns) + b"\n" if is_csv else b""
    return FormatLayout(
        name=name,
        suffix="csv" if is_csv else "jsonl",
        videos=videos_of(export),
        write=partial(write_lines, header=header),
        samples=samples,
        features=None if is_csv else map_features(columns, known),
        columns=(("The window", tuple(_described(name, source, known) for name, source in columns.items())),),
        encode=_csv_record if is_csv else encode_record,
        merged=replace(merged, header=header),
    )


def _place_columns(export: ExportConfig) -> tuple[Column, ...]:
    return CLIP_COLUMNS + (VIDEO_COLUMNS if export.has_videos else CLIP_LOCATION_COLUMNS)


def _described(name: str, source: Any, known: Mapping[str, Column]) -> Column:
    """A mapped column with its meaning, for the card."""
    if isinstance(source, str):
        return replace(known[source], name=name)
    return Column(name, "struct", ", ".join(names_in({name: source})) or f"always `{source[CONSTANT]}`")


def _one_line_texts(record: Record) -> Record:
    """A record whose texts are one line each. Names stay as they are, since they lead to a file."""
    return {
        name: one_line(value) if isinstance(value, str) and name not in _NAMES else value
        for name, value in record.items()
    }


def _csv_record(record: Record) -> bytes:
    """A record as a line of CSV. Nested values are JSON."""
    return _csv_line(_csv_value(value) for value in record.values())


def _csv_value(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, tuple, dict)) else value


def _csv_line(values: Iterable[Any]) -> bytes:
    line = StringIO()
    csv.writer(line, lineterminator="").writerow(values)
    return line.getvalue().encode()
