"""The format cosmos: JSON lines for the finetuning of NVIDIA's Cosmos, a clip with its windows each."""

from __future__ import annotations

import json
from itertools import groupby

from caption_assets.captioning.output import JsonOutput
from caption_assets.export.clip import CaptionedClip, CaptionedWindow, VideoFile
from caption_assets.export.columns import Column, StageColumns, choose_text
from caption_assets.export.config import ExportConfig
from caption_assets.export.formats.layout import (
    FormatLayout,
    MergedFile,
    Record,
    Sample,
    Videos,
    sample_key,
    videos_of,
    window_key,
)
from caption_assets.export.formats.lines import write_lines

MAX_SECONDS = 61.0
"""Cosmos drops longer files. Source: sft_dataset.py of NVIDIA/cosmos-framework at 5eee9ed."""
MIN_FRAMES = 61
"""Cosmos drops shorter windows; see ``MAX_SECONDS``."""
TOO_LONG = f"cosmos: file over {MAX_SECONDS:.0f} s"
"""Reason of a window that is left out."""
TOO_SHORT = f"cosmos: window under {MIN_FRAMES} frames"
"""Reason of a window that is left out."""
COLUMNS = (
    Column("uuid", "string", "key of the clip, or of the window if windows are cut"),
    Column("duration", "float64", "duration of the file, in seconds"),
    Column("width", "int32", "displayed width, in pixels"),
    Column("height", "int32", "displayed height, in pixels"),
    Column("nb_frames", "int32", "number of frames of the file"),
    Column("framerate", "float64", "frames per second of the file"),
    Column("vision_path", "string", "the file, relative to the file of the dataset"),
)
_WINDOW_COLUMNS = (
    Column("start_frame", "int32", "first frame of the window in the file"),
    Column("end_frame", "int32", "last frame of the window"),
    Column("temporal_interval", "int32", "always 1: every frame"),
    Column("caption", "string", "the text, if it is no JSON object"),
    Column("caption_json", "string", "the text as an object, if it is one"),
)


def cosmos(export: ExportConfig, stages: tuple[StageColumns, ...]) -> FormatLayout:
    """The layout of cosmos."""
    videos = videos_of(export)
    objects = frozenset(columns.stage.name for columns in stages if isinstance(columns.stage.output, JsonOutput))

    def samples(clip: CaptionedClip) -> list[Sample]:
        found = []
        for video, part in groupby(clip.windows, lambda window: window.video):
            windows = list(part)
            if video is not None:
                key = sample_key(clip) if videos is Videos.CLIPS else window_key(clip, windows[0])
                entries = [_window(window, video, videos, objects) for window in windows]
                found.append(Sample(key, _record(key, video, export, entries)))
        return found

    return FormatLayout(
        name="JSON lines for Cosmos",
        suffix="jsonl",
        videos=videos,
        write=write_lines,
        samples=samples,
        features=None,  # the objects of caption_json have the fields of the stage
        columns=(("The file", COLUMNS), ("`t2w_windows`: each of its windows", _WINDOW_COLUMNS)),
        limit=cosmos_limits,
        merged=MergedFile("cosmos.jsonl"),
    )


def cosmos_limits(window: CaptionedWindow) -> CaptionedWindow | str:
    """Leave out what Cosmos would drop silently."""
    video, row = window.video, window.row
    seconds = video.seconds if video else row.clip_seconds
    frames = min(video.frames if video else MIN_FRAMES, (row.end_frame or 0) - (row.start_frame or 0))
    if seconds is not None and seconds > MAX_SECONDS:
        return TOO_LONG
    return TOO_SHORT if frames < MIN_FRAMES else window


def _record(key: str, video: VideoFile, export: ExportConfig, windows: list[Record]) -> Record:
    values = (key, video.seconds, video.width, video.height, video.frames, video.fps, export.trainer_path(video.path))
    return {**dict(zip((column.name for column in COLUMNS), values, strict=True)), "t2w_windows": windows}


def _window(window: CaptionedWindow, video: VideoFile, videos: Videos, objects: frozenset[str]) -> Record:
    """A window. Its last frame is included in it, unlike in the project's tables."""
    first, end = (window.row.start_frame, window.row.end_frame) if videos is Videos.CLIPS else (0, video.frames)
    text = choose_text(window)
    caption = {"caption_json": json.loads(text.text)} if text.stage in objects else {"caption": text.text}
    return {"start_frame": first, "end_frame": (end or 0) - 1, "temporal_interval": 1, **caption}
