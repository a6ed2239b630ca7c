"""The previews of a shard's windows, stored beside its gallery: one object a window."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from caption_assets.store.root import Root

GALLERY = "gallery"
PARALLEL_READS = 16
"""Number of concurrent reads: in object storage each takes tens of milliseconds, most of it latency."""


@dataclass(frozen=True, slots=True)
class Preview:
    """The preview of one window."""

    jpeg: bytes
    """Frames of equal height, below each other."""
    frames: int
    """Number of frames."""


def preview_folder(shard: str) -> str:
    """The folder of a shard's previews, relative to the root."""
    return f"{GALLERY}/{shard}/previews"


def preview_path(shard: str, window_id: str, frames: int) -> str:
    """The path of a window's preview, relative to the root."""
    return f"{preview_folder(shard)}/{window_id}.{frames}.jpg"


def write_preview(root: Root, shard: str, window_id: str, preview: Preview) -> None:
    """Write a window's preview.

    Raises:
        StoreError: if it cannot be written.
    """
    root.write(preview_path(shard, window_id, preview.frames), preview.jpeg)


class StoredPreviews:
    """The previews of a shard. The folder is listed once.

    Earlier releases stored one frame as ``<window_id>.jpg``, and an animation beside it. It is shown where there is no
    preview of this release.

    Args:
        root: the root that holds them.
        shard: the shard's key.

    Raises:
        StoreError: if the root cannot be listed.
    """

    def __init__(self, root: Root, shard: str) -> None:
        self._root = root
        self._folder = preview_folder(shard)
        self._frames: dict[str, int] = {}
        self._former: set[str] = set()
        for name in root.names(self._folder):
            match name.split("."):
                case window_id, frames, "jpg" if frames.isdecimal():
                    self._frames[window_id] = int(frames)
                case window_id, "jpg":
                    self._former.add(window_id)

    def __contains__(self, window_id: str) -> bool:
        """Whether a window has a preview of this release."""
        return window_id in self._frames

    def locate(self, window_id: str) -> tuple[str, int] | None:
        """Path of a window's preview, relative to the root, and its number of frames; None if there is none."""
        if frames := self._frames.get(window_id):
            return f"{self._folder}/{window_id}.{frames}.jpg", frames
        return (f"{self._folder}/{window_id}.jpg", 1) if window_id in self._former else None

    def read(self, window_ids: Sequence[str]) -> dict[str, Preview]:
        """The previews of the windows that have one, by window id.

        Raises:
            StoreError: if one cannot be read.
        """
        if self._root.is_local:  # threads would compete for the interpreter: 5,000 files would take three times as long
            found = [self._read(window_id) for window_id in window_ids]
        else:
            with ThreadPoolExecutor(PARALLEL_READS) as pool:
                found = list(pool.map(self._read, window_ids))
        return {window_id: preview for window_id, preview in zip(window_ids, found, strict=True) if preview}

    def _read(self, window_id: str) -> Preview | None:
        if not (found := self.locate(window_id)):
            return None
        path, frames = found
        try:
            return Preview(self._root.read(path), frames)
        except FileNotFoundError:
            return None
