"""The columns of the dataset, shared by its records and its card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from caption_assets.export.clip import CaptionedClip, CaptionedWindow

Feature = dict[str, Any]
"""A column's type in the front matter of a card."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column, named like the field of the table row that it comes from."""

    name: str
    dtype: str
    """Type name in ``datasets``; ``list`` for a list of strings."""
    about: str
    """Its meaning, for the card."""

    @property
    def feature(self) -> Feature:
        """Its type in the front matter."""
        return {"name": self.name, **({"list": "string"} if self.dtype == "list" else {"dtype": self.dtype})}


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
    Column("prompt", "string", "the clip's own stage-1 instruction, if it has one"),
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
_STAGE_COLUMNS = (
    Column("caption", "string", "caption of stage {}"),
    Column("flags", "list", "quality flags of that caption; empty if it has none"),
    Column("model", "string", "Hub id of the model of stage {}"),
    Column("revision", "string", "commit of that model"),
    Column("lora", "string", "Hub id of the LoRA adapter on that model, if there was one"),
    Column("lora_revision", "string", "commit of that adapter"),
    Column("prompt_name", "string", "name of the prompt of stage {}"),
)
STAGE_COLUMNS = tuple(
    Column(f"stage{stage}_{column.name}", column.dtype, column.about.format(stage))
    for stage in (1, 2)
    for column in _STAGE_COLUMNS
)


def clip_record(clip: CaptionedClip, columns: Sequence[Column] = CLIP_COLUMNS) -> dict[str, Any]:
    """The clip's columns."""
    return {SHARD.name: clip.shard, **{column.name: getattr(clip.row, column.name) for column in columns}}


def window_record(window: CaptionedWindow) -> dict[str, Any]:
    """The window's columns."""
    record = {column.name: getattr(window.row, column.name) for column in WINDOW_COLUMNS}
    for stage, row in ((1, window.stage1), (2, window.stage2)):
        record |= {f"stage{stage}_{column.name}": getattr(row, column.name) for column in _STAGE_COLUMNS}
    return record
