"""Previews of windows that have none: the clips are read and decoded again, without an engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from caption_assets.captioning.budget import FrameGrid
from caption_assets.captioning.decoding import SandboxDecoder, require
from caption_assets.captioning.preview_store import PreviewStore
from caption_assets.captioning.window_job import WindowJob
from caption_assets.errors import CaptionAssetsError, UnreadableClip
from caption_assets.sources.manifest import ClipChanged, clip_pieces
from caption_assets.store.previews import StoredPreviews
from caption_assets.store.root import Root
from caption_assets.store.tables import ManifestRow, Status
from caption_assets.video.preview import FRAMES, preview_size
from caption_assets.workers.sandbox import Sandbox


@dataclass(frozen=True, slots=True)
class MadePreviews:
    """The result of making the missing previews of a shard."""

    missing: int
    """Number of windows that had no preview."""
    made: int
    """Number of those that have one now."""
    errors: Sequence[str]
    """Reasons of the others."""


def make_missing_previews(
    root: Root, source: Root, shard: str, manifest: Sequence[ManifestRow], sandbox: Sandbox
) -> MadePreviews:
    """Make and store the previews that a shard's windows lack. Unreadable clips have no windows.

    Args:
        root: the root that stores the previews.
        source: the folder of shards.
        shard: the shard's key.
        manifest: its windows.
        sandbox: decodes the windows.

    Raises:
        StoreError: if the stored previews cannot be listed.
    """
    stored = StoredPreviews(root, shard)
    jobs = [
        WindowJob(row, partial(clip_pieces, source, row), (), shard)
        for row in manifest
        if row.status is Status.OK and row.window_id not in stored
    ]
    errors: list[str] = []

    async def make_all() -> None:
        with PreviewStore(root, errors.append) as previews, SandboxDecoder(sandbox, previews.store) as decoder:
            errors.extend(filter(None, await asyncio.gather(*(_make(decoder, job) for job in jobs))))

    asyncio.run(make_all())
    stored = StoredPreviews(root, shard)
    return MadePreviews(len(jobs), sum(job.window.window_id in stored for job in jobs), errors)


async def _make(decoder: SandboxDecoder, job: WindowJob) -> str | None:
    """Decode a window in the size of a preview, so that its preview is stored. Return the reason if that fails."""
    window = job.window
    width, height = preview_size(require(window.width), require(window.height))
    frames = min(FRAMES, require(window.end_frame) - require(window.start_frame))
    try:
        await decoder.frames(job, FrameGrid(frames, height, width))
    except (UnreadableClip, ClipChanged, CaptionAssetsError, OSError) as error:
        return f"{window.clip_key}: {error}"
    return None
