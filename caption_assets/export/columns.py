"""The columns of the dataset, for its records and its card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from caption_assets.export.clip import CaptionedClip, CaptionedWindow

Feature = dict[str, Any]
"""A column as the front matter of a card has it."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column, named as the field of the table's row that it comes from."""

    name: str
    dtype: str
    """As ``datasets`` names it; ``list`` for a list of strings."""
    about: str

    @property
    def feature(self) -> Feature:
        """Its type in a card."""
        return {"name": self.name, **({"list": "string"} if self.dtype == "list" else {"dtype": self.dtype})}


SHARD = Column("shard", "string", "shard of the source that the clip comes from")
OF_CLIP = (
    Column("clip_key", "string", "name of the clip within its shard"),
    Column("bytes", "int64", "length of the clip's file"),
    Column("codec", "string", "video codec, as FFmpeg names it"),
    Column("width", "int32", "pixels as displayed"),
    Column("height", "int32", "pixels as displayed"),
    Column("has_audio", "bool", "whether there is sound"),
    Column("clip_frames", "int32", "frames of the whole clip"),
    Column("clip_fps", "float64", "average frames per second of the whole clip"),
    Column("clip_seconds", "float64", "length of the whole clip"),
    Column("prompt", "string", "the clip's own stage-1 instruction, if it brought one"),
    Column("extra", "string", "what else its source says of the clip, as a JSON object"),
)
OF_PLACE = (
    Column("uri", "string", "file that holds the clip: relative to the source of the shards, or a URL"),
    Column("offset", "int64", "where the clip's bytes begin in that file"),
)
OF_WINDOW = (
    Column("window_index", "int32", "number of the window within its clip, from 0"),
    Column("window_id", "string", "hash of the clip's name and content and the window's number"),
    Column("start_frame", "int32", "first frame of the window"),
    Column("end_frame", "int32", "one past its last frame"),
    Column("start_seconds", "float64", "when the window begins, from the beginning of the clip"),
    Column("end_seconds", "float64", "when the window ends, from the beginning of the clip"),
)
_OF_STAGE = (
    Column("caption", "string", "what the model wrote in stage {}"),
    Column("flags", "list", "what is doubtful about that text; empty if nothing"),
    Column("model", "string", "Hub id of the model of stage {}"),
    Column("revision", "string", "commit of that model"),
    Column("lora", "string", "Hub id of the LoRA adapter on that model, if there was one"),
    Column("lora_revision", "string", "commit of that adapter"),
    Column("prompt_name", "string", "name of the prompt of stage {}"),
)
OF_STAGES = tuple(
    Column(f"stage{stage}_{column.name}", column.dtype, column.about.format(stage))
    for stage in (1, 2)
    for column in _OF_STAGE
)


def clip_record(clip: CaptionedClip, columns: Sequence[Column] = OF_CLIP) -> dict[str, Any]:
    """The clip's columns."""
    return {SHARD.name: clip.shard, **{column.name: getattr(clip.row, column.name) for column in columns}}


def window_record(window: CaptionedWindow) -> dict[str, Any]:
    """The window's columns."""
    record = {column.name: getattr(window.row, column.name) for column in OF_WINDOW}
    for stage, row in ((1, window.stage1), (2, window.stage2)):
        record |= {f"stage{stage}_{column.name}": getattr(row, column.name) for column in _OF_STAGE}
    return record
