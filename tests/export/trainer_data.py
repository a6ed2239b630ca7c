"""Captioned shards of real clips, for tests of what trainers load."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from caption_assets.store.root import Root
from tests.export.shards import clip, publish_captioned
from tests.videos import gray, video

FRAMES = 64
"""Number of frames of a window; Cosmos needs 61."""
TEXTS = [f"Stage 2 of {name}.mp4, window {index}." for name in ("one", "two") for index in range(2)]
"""The texts of all windows."""


def captioned_root(folder: Path) -> Root:
    """Two shards with one clip of two windows each."""
    root = Root.open(str(folder))
    pictures = [gray(index, (64, 48)) for index in range(2 * FRAMES)]
    for shard in ("one", "two"):
        rows = clip(
            root,
            f"{shard}.mp4",
            video(pictures),
            windows=2,
            width=64,
            height=48,
            clip_frames=2 * FRAMES,
            clip_fps=25.0,
            clip_seconds=2 * FRAMES / 25,
        )
        rows = [
            replace(
                row,
                start_frame=FRAMES * number,
                end_frame=FRAMES * (number + 1),
                start_seconds=FRAMES * number / 25,
                end_seconds=FRAMES * (number + 1) / 25,
            )
            for number, row in enumerate(rows)
        ]
        publish_captioned(root, rows, shard=shard)
    return root
