"""Window jobs for the captioner, from a video in memory."""

from __future__ import annotations

from uuid import uuid4

from caption_assets.captioning.window_job import WindowJob
from caption_assets.store.content_tag import ContentTag
from caption_assets.store.tables import ManifestRow, Status
from caption_assets.video.probe import probe
from caption_assets.video.window import Windowing, split_into_windows
from tests.stages import STAGES


def video_jobs(
    data: bytes, windowing: Windowing | None = None, *, name: str = "video.mp4", prompt: str | None = None
) -> list[WindowJob]:
    """A job for each window of a video, with unique window ids."""
    found = probe(data)
    rows = [
        ManifestRow(
            clip_key=name,
            window_index=window.index,
            window_id=uuid4().hex,
            content_tag=ContentTag(data).hexdigest(),
            bytes=len(data),
            status=Status.OK,
            width=found.width,
            height=found.height,
            start_frame=window.start_frame,
            end_frame=window.end_frame,
            start_seconds=window.start_seconds,
            end_seconds=window.end_seconds,
            prompt=prompt,
        )
        for window in split_into_windows(found.times, found.seconds, windowing or Windowing())
    ]
    return [WindowJob(row, lambda: [data], STAGES) for row in rows]
