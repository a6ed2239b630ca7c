"""Builders of manifest and caption rows, for tests of reports and checks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from caption_assets.captioning.output import ChoiceOutput, JsonOutput, output_identity
from caption_assets.captioning.stages import Stage, StageGraph
from caption_assets.checks.stored_tables import StoredTable
from caption_assets.store.root import Root
from caption_assets.store.table_file import with_file_metadata
from caption_assets.store.tables import (
    CaptionRow,
    ManifestRow,
    Status,
    caption_schema,
    publish_captions,
    publish_manifest,
    window_id,
)
from tests.stages import STAGE1, STAGE2

SHARD = "shard"
PROMPTS = {STAGE1.name: "Describe the video.", STAGE2.name: "Describe it more fully: {caption}"}
ATTRIBUTES_SCHEMA = {
    "type": "object",
    "properties": {
        "subjects": {"type": "array", "items": {"type": "string"}},
        "camera": {
            "type": "object",
            "properties": {"motion": {"type": "string"}, "shots": {"type": "integer"}},
        },
    },
}
FOUR = StageGraph(
    "four",
    (
        Stage("short", "Describe the video in one sentence."),
        Stage("dense_captions", "Describe it more fully: {short}"),
        Stage("attributes", "List what the video shows.", JsonOutput(ATTRIBUTES_SCHEMA)),
        Stage("alignment", "Do {short} and {dense_captions} fit the video?", ChoiceOutput(("yes", "no"), "yes")),
    ),
)
"""A recipe with each kind of output."""


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
    """Publish the manifest, and the caption tables of the default recipe that have rows."""
    publish_manifest(root, shard, manifest, {})
    for stage, rows in ((STAGE1, stage1), (STAGE2, stage2)):
        if rows:
            publish_stage(root, stage, rows, prompt=PROMPTS[stage.name], shard=shard)


def publish_stage(
    root: Root, stage: Stage, rows: Sequence[CaptionRow], *, prompt: str | None = None, shard: str = SHARD
) -> None:
    """Publish a stage's table."""
    keys = [row.key for row in rows]
    publish_captions(root, stage.name, shard, rows, keys, _metadata(stage, prompt), columns=stage.columns)


def table_of(stage: Stage, rows: Sequence[CaptionRow], prompt: str | None = None) -> StoredTable:
    """A stage's table as it is read."""
    schema = with_file_metadata(caption_schema(stage.columns), _metadata(stage, prompt))
    return StoredTable.of(stage.name, schema, rows)


def _metadata(stage: Stage, prompt: str | None) -> dict[str, str]:
    recipe = json.dumps(output_identity(stage.output))
    return {"prompt": prompt or stage.prompt, "recipe": recipe, "recipe_version": "1"}


def four_captions(of: ManifestRow) -> dict[str, CaptionRow]:
    """A window's caption of each stage of ``FOUR``."""
    upstream = {"short": "s", "dense_captions": "d"}
    attributes = {"subjects": ["a car", "a man"], "camera": {"motion": "static", "shots": 1}}
    yes = {"yes": 0.9, "no": 0.1}
    return {
        "short": captioned(of, "A car.", fingerprint="s"),
        "dense_captions": captioned(of, "A red car.", fingerprint="d", upstream_fingerprints={"short": "s"}),
        "attributes": captioned(of, json.dumps(attributes), fingerprint="a"),
        "alignment": captioned(of, "yes", fingerprint="y", upstream_fingerprints=upstream, probabilities=yes),
    }


def publish_four(root: Root, manifest: Sequence[ManifestRow], **changed: CaptionRow) -> None:
    """Publish the manifest and the tables of ``FOUR``, with the rows of some stages replaced for all windows."""
    publish_manifest(root, SHARD, manifest, {})
    for stage in FOUR.stages:
        publish_stage(root, stage, [{**four_captions(window), **changed}[stage.name] for window in manifest])
