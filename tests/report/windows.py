"""Builders of manifest and caption rows, for tests of reports and checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from caption_assets.store.root import Root
from caption_assets.store.tables import CaptionRow, ManifestRow, Status, publish_captions, publish_manifest, window_id
from tests.stages import STAGE1, STAGE2

SHARD = "shard"
PROMPTS = {STAGE1.name: "Describe the video.", STAGE2.name: "Describe it more fully: {caption}"}


def window(key: str, index: int = 0, **changes: Any) -> ManifestRow:
    properties = {"start_frame": 0, "end_frame": 100, "start_seconds": 0.0, "end_seconds": 4.0, "clip_seconds": 4.0}
    return ManifestRow(
        **{
            "clip_key": key,
            "window_index": index,
            "window_id": window_id(key, index, "tag"),
            "content_tag": "tag",
            "bytes": 1000,
            "status": Status.OK,
            "codec": "h264",
            "clip_frames": 100,
            **properties,
            **changes,
        }
    )


def broken(key: str) -> ManifestRow:
    return ManifestRow(
        key,
        None,
        window_id(key, None, ""),
        "",
        10,
        Status.FAILED,
        error_kind="unreadable",
        error="the index is missing",
    )


def captioned(of: ManifestRow, caption: str, **changes: Any) -> CaptionRow:
    return CaptionRow(
        **{
            **_of(of),
            "status": Status.OK,
            "caption": caption,
            "finish_reason": "stop",
            "model": "sample",
            "revision": "1",
            "prompt_name": "general",
            "sampling": {"temperature": 0.1, "seed": None},
            "frame_indices": (0, 50, 99),
            "frame_fps": 0.75,
            "frame_width": 448,
            "frame_height": 252,
            "prompt_tokens": 2500,
            "cached_tokens": 2048,
            "output_tokens": 12,
            "attempts": 1,
            **changes,
        }
    )


def failed(of: ManifestRow, kind: str = "engine", error: str = "the engine crashed", **changes: Any) -> CaptionRow:
    return CaptionRow(**_of(of), status=Status.FAILED, error_kind=kind, error=error, **changes)


def _of(window: ManifestRow) -> dict[str, Any]:
    names = "clip_key", "window_index", "window_id", "start_seconds", "end_seconds"
    return {name: getattr(window, name) for name in names}


def publish(
    root: Root,
    manifest: Sequence[ManifestRow],
    stage1: Sequence[CaptionRow] = (),
    stage2: Sequence[CaptionRow] = (),
    *,
    shard: str = SHARD,
) -> None:
    """Publish the manifest, and the caption tables that have rows."""
    publish_manifest(root, shard, manifest, {})
    keys = [row.key for row in manifest]
    for table, rows in ((STAGE1.name, stage1), (STAGE2.name, stage2)):
        if rows:
            publish_captions(root, table, shard, rows, keys, {"prompt": PROMPTS[table]})
