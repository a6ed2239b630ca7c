"""Helpers for tests of the export: captioned shards, and readers of exported files."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from typing import Any

from caption_assets.captioning.recipe_file import built_in
from caption_assets.export.config import ExportConfig, Format
from caption_assets.export.dataset_shard import ExportResult, export_shard
from caption_assets.export.index import DATASET, shard_folder
from caption_assets.store.content_tag import ContentTag, etag_tag
from caption_assets.store.root import Root
from caption_assets.store.tables import ManifestRow
from tests.report.windows import SHARD, captioned, publish, window

TARS = ExportConfig(Format.WEBDATASET, file_bytes=1 << 30, graph=built_in("general"))
LINES = ExportConfig(Format.JSONL, file_bytes=1 << 30, graph=built_in("general"))


def clip(root: Root, key: str, data: bytes, *, windows: int = 1, **changes: Any) -> list[ManifestRow]:
    """Write a clip into a root, and return the manifest rows of its windows."""
    uri = f"clips/{ContentTag(data).hexdigest()}"
    root.write(uri, data)
    etag = root.fs.info(root.full(uri)).get("ETag")
    columns = {
        "content_tag": etag_tag(etag) if etag else ContentTag(data).hexdigest(),
        "bytes": len(data),
        "uri": uri,
        **changes,
    }
    rows = [window(key, index, start_seconds=4.0 * index, end_seconds=4.0 * index + 4) for index in range(windows)]
    return [replace(row, **columns) for row in rows]


def publish_captioned(root: Root, *clips: list[ManifestRow], shard: str = SHARD, **changes: Any) -> None:
    """Publish the tables of a shard without failures."""
    rows = [row for clip in clips for row in clip]
    texts = [f"{row.clip_key}, window {row.window_index}" for row in rows]
    stage1 = [captioned(row, f"Stage 1 of {text}.", **changes) for row, text in zip(rows, texts, strict=True)]
    stage2 = [captioned(row, f"Stage 2 of {text}.", **changes) for row, text in zip(rows, texts, strict=True)]
    publish(root, rows, stage1, stage2, shard=shard)


def export(root: Root, how: ExportConfig = TARS, shard: str = SHARD) -> ExportResult:
    """Export a shard with its root as the source."""
    return export_shard(root, root, shard, how)


def names(root: Root, shard: str = SHARD) -> list[str]:
    """The names of a shard's exported files."""
    return root.names(shard_folder(shard))


def tars(root: Root, shard: str = SHARD) -> list[dict[str, bytes]]:
    """The members of each tar of a shard, by name."""
    found = []
    for name in names(root, shard):
        if name.endswith(".tar"):
            with tarfile.open(fileobj=BytesIO(root.read(f"{shard_folder(shard)}/{name}"))) as tar:
                found.append({member.name: tar.extractfile(member).read() for member in tar})  # type: ignore[union-attr]
    return found


def samples(root: Root, shard: str = SHARD) -> list[tuple[dict[str, Any], bytes]]:
    """Record and clip of each sample in a shard's tars."""
    members = [item for tar in tars(root, shard) for item in tar.items()]
    return [(json.loads(record), video) for (_, record), (_, video) in zip(members[::2], members[1::2], strict=True)]


def lines(root: Root, shard: str = SHARD) -> list[Mapping[str, Any]]:
    """The records in a shard's JSON lines files."""
    files = [name for name in names(root, shard) if name.endswith(".jsonl")]
    data = b"".join(root.read(f"{shard_folder(shard)}/{name}") for name in files)
    return [json.loads(line) for line in data.splitlines()]


def card(root: Root) -> str:
    """The dataset's card."""
    return root.read(f"{DATASET}/README.md").decode()
