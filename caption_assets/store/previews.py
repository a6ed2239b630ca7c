"""The previews of a shard's windows, stored beside its gallery."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from caption_assets.store.root import Root

GALLERY = "gallery"
PARALLEL_READS = 16
"""Number of concurrent reads: in object storage each takes tens of milliseconds, most of it latency."""


def preview_folder(shard: str) -> str:
    """The folder of a shard's previews, relative to the root."""
    return f"{GALLERY}/{shard}/previews"


def preview_path(shard: str, window_id: str, suffix: str) -> str:
    """The path of a window's preview, relative to the root; ``suffix`` is ``webp`` (animation) or ``jpg`` (poster)."""
    return f"{preview_folder(shard)}/{window_id}.{suffix}"


def write_preview(root: Root, shard: str, window_id: str, animation: bytes, poster: bytes) -> None:
    """Write a window's animation and poster.

    Raises:
        StoreError: if they cannot be written.
    """
    root.write(preview_path(shard, window_id, "webp"), animation)
    root.write(preview_path(shard, window_id, "jpg"), poster)


def read_posters(root: Root, shard: str, window_ids: Iterable[str]) -> dict[str, bytes]:
    """The posters of the windows that have one, by window id."""
    ids = list(window_ids)
    paths = [preview_path(shard, window_id, "jpg") for window_id in ids]
    if root.is_local:  # threads would compete for the interpreter: 5,000 posters would take three times as long
        found = [_read_if_present(root, path) for path in paths]
    else:
        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            found = list(pool.map(lambda path: _read_if_present(root, path), paths))
    return {window_id: poster for window_id, poster in zip(ids, found, strict=True) if poster}


def _read_if_present(root: Root, path: str) -> bytes | None:
    try:
        return root.read(path)
    except FileNotFoundError:
        return None
