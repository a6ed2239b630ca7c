"""The columns of the dataset, shared by its records and its card."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import pyarrow as pa

from caption_assets.captioning.stages import Stage
from caption_assets.errors import CaptionAssetsError
from caption_assets.export.clip import CaptionedClip, CaptionedWindow, TrainingText, VideoFile
from caption_assets.store.caption_columns import PROBABILITIES

Feature = dict[str, Any]
"""A column's type in the front matter of a card, with its name or without."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column, named like the field of the table row that it comes from."""

    name: str
    dtype: str
    """Type name in ``datasets``; ``list`` or ``struct`` for a nested type."""
    about: str
    """Its meaning, for the card."""
    type: Feature | None = None
    """Its type in the front matter, if it is nested."""

    @property
    def feature(self) -> Feature:
        """Its name and type in the front matter."""
        return {"name": self.name, **(self.type or {"dtype": self.dtype})}


SHARD = Column("shard", "string", "shard of the source that contains the clip")
CLIP_COLUMNS = (
    Column("clip_key", "string", "name of the clip within its shard"),
    Column("bytes", "int64", "size of the clip's file, in bytes"),
    Column("codec", "string", "FFmpeg's name of the video codec"),
    Column("width", "int32", "displayed width, in pixels"),
    Column("height", "int32", "displayed height, in pixels"),
    Column("has_audio", "bool", "whether the clip has audio"),
    Column("clip_frames", "int32", "number of frames of the whole clip"),
    Column("clip_fps", "float64", "average frames per second of the whole clip"),
    Column("clip_seconds", "float64", "duration of the whole clip, in seconds"),
    Column("prompt", "string", "the clip's own instruction, if it has one"),
    Column("extra", "string", "further columns of the clip in its source, as a JSON object"),
)
CLIP_LOCATION_COLUMNS = (
    Column("uri", "string", "file that contains the clip: relative to the source of the shards, or a URL"),
    Column("offset", "int64", "position of the clip's first byte in that file"),
)
WINDOW_COLUMNS = (
    Column("window_index", "int32", "number of the window within its clip, from 0"),
    Column("window_id", "string", "hash of the clip's name and content and the window's number"),
    Column("start_frame", "int32", "first frame of the window"),
    Column("end_frame", "int32", "one past its last frame"),
    Column("start_seconds", "float64", "start of the window within the clip, in seconds"),
    Column("end_seconds", "float64", "end of the window within the clip, in seconds"),
)
TEXT_COLUMNS = (
    Column("caption", "string", "text to train on: the caption of a stage, drawn by the weights of the stages"),
    Column("caption_stage", "string", "stage of that text"),
    Column("caption_tokens", "int32", "length of that text in tokens of the trainer's tokenizer, if one is set"),
)
VIDEO_COLUMNS = (
    Column("video", "string", "video file of the window"),
    Column("video_frames", "int32", "number of its frames"),
    Column("video_fps", "float64", "its frames per second"),
    Column("video_seconds", "float64", "its duration, in seconds"),
    Column("video_width", "int32", "its displayed width, in pixels"),
    Column("video_height", "int32", "its displayed height, in pixels"),
    Column("video_aspect_ratio", "float64", "its height divided by its width"),
    Column("video_pixels", "int32", "number of pixels of a frame"),
)
_STAGE_COLUMNS = (
    Column("caption", "string", "caption of stage `{}`"),
    Column("flags", "list", "quality flags of that caption; empty if it has none", {"list": "string"}),
    Column("model", "string", "Hub id of the model of stage `{}`"),
    Column("revision", "string", "commit of that model"),
    Column("lora", "string", "Hub id of the LoRA adapter on that model, if there was one"),
    Column("lora_revision", "string", "commit of that adapter"),
    Column("prompt_name", "string", "name of the prompt of stage `{}`"),
    Column("correction", "string", "`rewrite` if a person wrote that caption, `accept` if a person accepted it"),
)
_OUTPUT_COLUMNS = {
    "fields": "that caption, which is JSON, with its fields",
    "choice": "that caption, which is one of the choices of stage `{}`",
    "probability": "probability of that choice",
    "score": "probability of the choice that counts as good",
}
"""Columns that only stages of some outputs have, with their meanings."""


@dataclass(frozen=True, slots=True)
class StageColumns:
    """The columns of a stage. Their prefix is the stage's name without ``_captions``."""

    stage: Stage
    columns: Mapping[str, Column]
    """By the name of the column in the stage's table."""

    @classmethod
    def of(cls, stage: Stage) -> StageColumns:
        """The columns of a stage."""
        own = [
            Column(field.name, dtype_of(field.type), _OUTPUT_COLUMNS[field.name], feature_of(field.type))
            for field in stage.columns.schema
            if field.name in _OUTPUT_COLUMNS
        ]
        prefix = stage.name.removesuffix("_captions")
        columns = {
            column.name: replace(column, name=f"{prefix}_{column.name}", about=column.about.format(stage.name))
            for column in (*_STAGE_COLUMNS, *own)
        }
        return cls(stage, columns)

    def record(self, window: CaptionedWindow) -> dict[str, Any]:
        """The columns of a window."""
        row = window.captions[self.stage.name]
        derived = self.stage.columns.derived({"caption": row.caption, PROBABILITIES: row.probabilities})
        derived["correction"] = window.present_decision(self.stage.name)
        return {
            column.name: derived[name] if name in derived else getattr(row, name)
            for name, column in self.columns.items()
        }


def stage_columns(stages: Iterable[Stage]) -> tuple[StageColumns, ...]:
    """The columns of each stage.

    Raises:
        CaptionAssetsError: if two stages have a column of the same name.
    """
    found = tuple(StageColumns.of(stage) for stage in stages)
    owners: dict[str, str] = {}
    for columns in found:
        name = columns.stage.name
        for column in columns.columns.values():
            if (other := owners.setdefault(column.name, name)) != name:
                raise CaptionAssetsError(
                    f"the stages {other} and {name} both export a column {column.name}: rename one of the stages"
                )
    return found


def window_columns(stages: Iterable[StageColumns]) -> tuple[Column, ...]:
    """The columns of a window, its text and its stages."""
    return (*WINDOW_COLUMNS, *TEXT_COLUMNS, *(column for columns in stages for column in columns.columns.values()))


def clip_record(clip: CaptionedClip, columns: Sequence[Column] = CLIP_COLUMNS) -> dict[str, Any]:
    """The clip's columns."""
    return {SHARD.name: clip.shard, **{column.name: getattr(clip.row, column.name) for column in columns}}


def window_record(window: CaptionedWindow, stages: Iterable[StageColumns]) -> dict[str, Any]:
    """The columns of the window, its text and its stages."""
    record = {column.name: getattr(window.row, column.name) for column in WINDOW_COLUMNS}
    text = choose_text(window)
    record |= dict(zip((column.name for column in TEXT_COLUMNS), (text.text, text.stage, text.tokens), strict=True))
    for columns in stages:
        record |= columns.record(window)
    return record


def video_record(video: VideoFile, path: str) -> dict[str, Any]:
    """The columns of a video file.

    Args:
        video: the file.
        path: its path for the trainer.
    """
    sizes = (video.width, video.height, video.height / video.width, video.width * video.height)
    values = (path, video.frames, video.fps, video.seconds, *sizes)
    return dict(zip((column.name for column in VIDEO_COLUMNS), values, strict=True))


def choose_text(window: CaptionedWindow) -> TrainingText:
    """The text of a window for a format with one text: drawn by the weights, and always the same for a window."""
    *others, last = window.texts
    drawn = int(sha256(window.row.window_id.encode()).hexdigest()[:16], 16) / 2**64
    left = drawn * sum(text.weight for text in window.texts)
    for text in others:
        if left < text.weight:
            return text
        left -= text.weight
    return last


def feature_of(kind: pa.DataType) -> Feature:
    """An Arrow type as a type in the front matter of a card."""
    if pa.types.is_struct(kind):
        return {"struct": [{"name": field.name, **feature_of(field.type)} for field in kind]}
    if pa.types.is_list(kind):
        item = feature_of(kind.value_type)
        return {"list": item.get("struct") or item.get("dtype") or item}
    return {"dtype": dtype_of(kind)}


def dtype_of(kind: pa.DataType) -> str:
    """The name of an Arrow type in ``datasets``."""
    if pa.types.is_nested(kind):
        return "struct" if pa.types.is_struct(kind) else "list"
    return "float64" if pa.types.is_float64(kind) else str(kind)
