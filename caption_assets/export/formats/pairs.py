"""The format pairs: a text file of the same name beside each video file, and lines with all columns."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from caption_assets.export.clip import CaptionedClip
from caption_assets.export.columns import CLIP_COLUMNS, SHARD, VIDEO_COLUMNS, StageColumns, choose_text, window_columns
from caption_assets.export.config import ExportConfig
from caption_assets.export.formats.layout import FormatLayout, Sample, check_own_files, features_of, videos_of
from caption_assets.export.formats.lines import line_columns, one_line, window_samples, write_lines


def pairs(export: ExportConfig, stages: tuple[StageColumns, ...]) -> FormatLayout:
    """The layout of pairs."""
    all_columns = window_samples(export, stages)

    def samples(clip: CaptionedClip) -> list[Sample]:
        check_own_files(clip)
        return list(all_columns(clip))

    return FormatLayout(
        name="video files with text files",
        # Lines, but called .json: diffusion-pipe takes every file for a video that does not end in .txt, .json, …
        suffix="json",
        videos=videos_of(export),
        write=write_lines,
        samples=samples,
        features=features_of(*line_columns(export, stages)),
        columns=(("The clip", (SHARD, *CLIP_COLUMNS)), ("The window", VIDEO_COLUMNS + window_columns(stages))),
        sidecars=text_files,
    )


def text_files(clip: CaptionedClip) -> Iterator[tuple[str, bytes]]:
    """The text file of each window: one line, since trainers read each line as a caption."""
    for window in clip.windows:
        if window.video is not None:
            stem = posixpath.splitext(posixpath.basename(window.video.path))[0]
            yield f"{stem}.txt", one_line(choose_text(window).text).encode()
