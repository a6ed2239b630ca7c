"""The formats of chats about a video: messages (ms-swift, LLaMA-Factory) and conversations (Qwen's finetuner)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from caption_assets.export.clip import CaptionedClip, CaptionedWindow
from caption_assets.export.columns import Column, StageColumns, choose_text
from caption_assets.export.config import ExportConfig
from caption_assets.export.formats.layout import (
    FormatLayout,
    MergedFile,
    Record,
    Sample,
    check_own_files,
    features_of,
    videos_of,
    window_key,
)
from caption_assets.export.formats.lines import write_lines

VIDEO_TAG = "<video>"
"""The place of the video in the question. The number of tags must be that of the videos."""
_TAG = re.compile("<(video|image|audio)>")
_MESSAGE = [{"name": "role", "dtype": "string"}, {"name": "content", "dtype": "string"}]
_TURN = [{"name": "from", "dtype": "string"}, {"name": "value", "dtype": "string"}]
_ABOUT = "question with the place of the video, and the text as its answer"
MESSAGES_COLUMNS = (
    Column("messages", "list", _ABOUT, {"list": _MESSAGE}),
    Column("videos", "list", "video file of the window", {"list": "string"}),
)
CONVERSATIONS_COLUMNS = (
    Column("video", "string", "video file of the window, relative to the dataset's folder"),
    Column("conversations", "list", _ABOUT, {"list": _TURN}),
)
DATASET_INFO_FILE = "dataset_info.json"
"""Name of LLaMA-Factory's file of descriptions."""
DATASET_INFO = {
    "captioned_dataset": {
        "file_name": "chat.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "videos": "videos"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    }
}
"""Description of the merged file for LLaMA-Factory."""


def chat(export: ExportConfig, stages: tuple[StageColumns, ...]) -> FormatLayout:
    """The layout of messages."""

    def record(window: CaptionedWindow, path: str) -> Record:
        messages = [
            {"role": "user", "content": f"{VIDEO_TAG}{export.instruction}"},
            {"role": "assistant", "content": without_tags(choose_text(window).text)},
        ]
        return {"messages": messages, "videos": [path]}

    info = json.dumps(DATASET_INFO, indent=2).encode()
    merged = MergedFile("chat.jsonl", companions={DATASET_INFO_FILE: info})
    return _layout(export, "chats with messages", record, MESSAGES_COLUMNS, merged)


def conversations(export: ExportConfig, stages: tuple[StageColumns, ...]) -> FormatLayout:
    """The layout of conversations."""

    def record(window: CaptionedWindow, path: str) -> Record:
        turns = [
            {"from": "human", "value": f"{VIDEO_TAG}\n{export.instruction}"},
            {"from": "gpt", "value": without_tags(choose_text(window).text)},
        ]
        return {"video": path, "conversations": turns}

    merged = MergedFile("conversations.jsonl")
    return _layout(export, "chats with conversations", record, CONVERSATIONS_COLUMNS, merged)


def without_tags(text: str) -> str:
    """A text in which no word is a tag, since trainers count the tags in all messages."""
    return _TAG.sub(r"\1", text)


def _layout(
    export: ExportConfig,
    name: str,
    record: Callable[[CaptionedWindow, str], Record],
    columns: tuple[Column, ...],
    merged: MergedFile,
) -> FormatLayout:
    def samples(clip: CaptionedClip) -> list[Sample]:
        check_own_files(clip)
        return [
            Sample(window_key(clip, window), record(window, export.trainer_path(window.video.path)), window)
            for window in clip.windows
            if window.video is not None
        ]

    return FormatLayout(
        name=name,
        suffix="jsonl",
        videos=videos_of(export),
        write=write_lines,
        samples=samples,
        features=features_of(*columns),
        columns=(("The window", columns),),
        merged=merged,
    )
