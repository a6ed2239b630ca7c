"""Where the previews of a shard's windows lie: beside its gallery."""

from __future__ import annotations

import logging

from caption_assets.store.failure import StoreError
from caption_assets.store.root import Root

GALLERY = "gallery"


def preview_path(shard: str, window_id: str, suffix: str) -> str:
    """Of a window's preview below the root; ``suffix`` is ``webp`` (animated) or ``jpg`` (one frame)."""
    return f"{GALLERY}/{shard}/previews/{window_id}.{suffix}"


def write_preview(root: Root, shard: str, window_id: str, animation: bytes, poster: bytes) -> None:
    """Keep a window's pictures. What cannot be written is logged: a caption is not lost over its picture."""
    try:
        root.write(preview_path(shard, window_id, "webp"), animation)
        root.write(preview_path(shard, window_id, "jpg"), poster)
    except StoreError as error:
        logging.getLogger(__name__).warning("no preview of window %s of shard %s: %s", window_id, shard, error)
