"""A shard's manifest: every clip probed and cut into windows, one row each."""

from __future__ import annotations

from collections.abc import Iterator

from caption_assets.clips.clip import Clip, content_tag
from caption_assets.clips.container import UnreadableClip
from caption_assets.clips.listing import list_clips
from caption_assets.clips.probe import Probe, probe
from caption_assets.clips.shard import Shard
from caption_assets.clips.window import MIN_WINDOW_FRAMES, Windowing, split
from caption_assets.store.root import Root
from caption_assets.store.tables import ManifestRow, Status, window_id


def manifest_rows(source: Root, shard: Shard, windowing: Windowing) -> Iterator[ManifestRow]:
    """One row for each window of each clip, in the listing's order; one for a clip that yields none, and why."""
    for clip in list_clips(source, shard):
        if clip.refusal:
            yield _unreadable(clip, "", clip.refusal)
            continue
        try:
            data = clip.video.read()
        except OSError as error:
            yield _unreadable(clip, "", UnreadableClip("unreadable", f"the file cannot be read: {error}"))
            continue
        tag = content_tag(data)
        try:
            yield from _windows(clip, tag, probe(data), windowing, _prompt(clip))
        except UnreadableClip as error:
            yield _unreadable(clip, tag, error)


def _prompt(clip: Clip) -> str | None:
    try:
        return clip.prompt()
    except ValueError as error:
        raise UnreadableClip("side_file", str(error)) from error


def _windows(clip: Clip, tag: str, found: Probe, windowing: Windowing, prompt: str | None) -> Iterator[ManifestRow]:
    windows = list(split(found.times, found.seconds, windowing))
    if not windows:
        raise UnreadableClip(
            "too_short", f"the clip has {found.frames} frames, fewer than the {MIN_WINDOW_FRAMES} that a window needs"
        )
    for window in windows:
        yield ManifestRow(
            clip_key=clip.key,
            window_index=window.index,
            window_id=window_id(clip.key, window.index, tag),
            content_tag=tag,
            bytes=clip.video.size,
            status=Status.OK,
            codec=found.codec,
            width=found.width,
            height=found.height,
            clip_frames=found.frames,
            clip_fps=found.fps,
            clip_seconds=found.seconds,
            start_frame=window.start_frame,
            end_frame=window.end_frame,
            start_seconds=window.start_seconds,
            end_seconds=window.end_seconds,
            prompt=prompt,
        )


def _unreadable(clip: Clip, tag: str, error: UnreadableClip) -> ManifestRow:
    return ManifestRow(
        clip_key=clip.key,
        window_index=None,
        window_id=window_id(clip.key, None, tag),
        content_tag=tag,
        bytes=clip.video.size,
        status=Status.FAILED,
        error_kind=error.kind,
        error=str(error),
    )
