"""Captioned clips with video files, for tests of formats."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from caption_assets.captioning.recipe_file import built_in
from caption_assets.export.clip import CaptionedClip, CaptionedWindow, TrainingText, VideoFile
from caption_assets.export.config import Cut, CutConfig, ExportConfig, Format
from caption_assets.export.formats import layout_of
from caption_assets.export.formats.layout import FormatLayout
from tests.report.windows import captioned, window
from tests.stages import STAGE1, STAGE2

EXACT = CutConfig(Cut.EXACT)
TEXT = "A red car turns left.\n\nIt stops."


def export_of(format: Format, cut: CutConfig | None = None, **changes: Any) -> ExportConfig:
    """The settings of a format with its default cut."""
    cut = cut or CutConfig(format.default_cut)
    return ExportConfig(format, 1 << 30, built_in("general"), cut=cut, **changes)


def clip_of(*videos: VideoFile | None, texts: tuple[TrainingText, ...] = ()) -> CaptionedClip:
    """A clip with one window of 100 frames for each video file."""
    texts = texts or (TrainingText("stage2_captions", TEXT),)
    found = []
    for index, video in enumerate(videos):
        row = window("car.mp4", index, start_frame=100 * index, end_frame=100 * index + 100, width=64, height=48)
        captions = {stage.name: captioned(row, f"{stage.name} of window {index}") for stage in (STAGE1, STAGE2)}
        found.append(CaptionedWindow(row, captions, texts=texts, video=video))
    return CaptionedClip("shard", found[0].row, tuple(found), ())


def video_of(name: str, **changes: Any) -> VideoFile:
    """A video file of the dataset."""
    return replace(VideoFile(f"data/shard=shard/{name}.mp4", 100, 25.0, 4.0, 640, 480), **changes)


def lines_of(layout: FormatLayout, clip: CaptionedClip) -> list[bytes]:
    """The lines of a clip, as they are written."""
    return [layout.encode(sample.record) for sample in layout.samples(clip)]


def records_of(export: ExportConfig, clip: CaptionedClip) -> list[Any]:
    """The records of a clip, as a trainer reads them from JSON lines."""
    return [json.loads(line) for line in lines_of(layout_of(export), clip)]
