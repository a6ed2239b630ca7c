"""A shard's manifest: every clip probed and cut into windows, one row each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from caption_assets.clips.clip import Clip
from caption_assets.clips.container import UnreadableClip
from caption_assets.clips.probe import Probe, probe_by_ranges
from caption_assets.clips.reader import SpanFile
from caption_assets.clips.shard import Shard, ShardError, list_clips
from caption_assets.clips.window import MIN_WINDOW_FRAMES, Windowing, split
from caption_assets.errors import CaptionAssetsError
from caption_assets.store.root import Root
from caption_assets.store.tables import ManifestRow, Status, window_id

PROBES = 16
"""Clips probed side by side. Each waits for two to four answers of the store, some 20 ms an answer, and then takes
milliseconds of one core, in which FFmpeg lets other threads run."""
AHEAD = 4 * PROBES
"""Clips taken up before the first of them is handed on, so that a slow one does not hold up the others."""

Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class ProbedClip:
    """One clip's rows, and what they cost."""

    size: int
    """Length of the clip's file."""
    bytes_read: int
    """Bytes of it that were fetched."""
    rows: tuple[ManifestRow, ...]
    """One for each window, or one that says why there is none."""


def manifest_rows(source: Root, shard: Shard, windowing: Windowing) -> Iterator[ManifestRow]:
    """One row for each window of each clip, in order of clip key; one for a clip that yields none, with the reason.

    Raises:
        ShardError: if the shard cannot be listed.
    """
    for clip in probe_clips(source, shard, windowing):
        yield from clip.rows


def probe_clips(source: Root, shard: Shard, windowing: Windowing) -> Iterator[ProbedClip]:
    """The shard's clips, probed many at a time and handed on in the order of the listing.

    Raises:
        ShardError: if the shard cannot be listed.
    """
    base = f"{source.fs.unstrip_protocol(source.path)}/"
    yield from _in_order(lambda clip: _probed(clip, base, windowing), _listed(source, shard))


def _listed(source: Root, shard: Shard) -> Iterator[Clip]:
    try:
        yield from list_clips(source, shard)
    except CaptionAssetsError:
        raise
    except Exception as error:  # stores have many: OSError, botocore's, their clients'
        raise ShardError(f"the clips of shard {shard.key!r} in {source.url!r} cannot be listed: {error}") from error


def _in_order(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """What is made of each item, in threads, in the order of the items; few are taken up ahead."""
    pool = ThreadPoolExecutor(PROBES, thread_name_prefix="probe")
    waiting: deque[Future[Made]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) == AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _probed(clip: Clip, base: str, windowing: Windowing) -> ProbedClip:
    file, row = SpanFile(clip.video), _clip_row(clip, base, tag="")
    try:
        row = _clip_row(clip, base, file.tag())
        rows = tuple(_window_rows(row, probe_by_ranges(file), windowing, _prompt(clip)))
    except UnreadableClip as error:
        rows = (replace(row, error_kind=error.kind, error=str(error)),)
    return ProbedClip(clip.video.size, file.bytes_read, rows)


def _clip_row(clip: Clip, base: str, tag: str) -> ManifestRow:
    """The row of a clip of which no more is known than where it lies."""
    return ManifestRow(
        clip_key=clip.key,
        window_index=None,
        window_id=window_id(clip.key, None, tag),
        content_tag=tag,
        bytes=clip.video.size,
        status=Status.FAILED,
        uri=clip.video.url.removeprefix(base),
        offset=clip.video.offset,
    )


def _window_rows(row: ManifestRow, found: Probe, windowing: Windowing, prompt: str | None) -> Iterator[ManifestRow]:
    if found.frames < MIN_WINDOW_FRAMES:
        raise UnreadableClip(
            "too_short", f"the clip has {found.frames} frames, fewer than the {MIN_WINDOW_FRAMES} that a window needs"
        )
    variable_fps = found.variable_fps
    for window in split(found.times, found.seconds, windowing):
        yield replace(
            row,
            window_index=window.index,
            window_id=window_id(row.clip_key, window.index, row.content_tag),
            status=Status.OK,
            codec=found.codec,
            width=found.width,
            height=found.height,
            rotation=found.rotation,
            pixel_format=found.pixel_format,
            bit_depth=found.bit_depth,
            interlaced=found.interlaced,
            has_audio=found.has_audio,
            clip_frames=found.frames,
            clip_fps=found.fps,
            variable_fps=variable_fps,
            clip_seconds=found.seconds,
            start_frame=window.start_frame,
            end_frame=window.end_frame,
            start_seconds=window.start_seconds,
            end_seconds=window.end_seconds,
            prompt=prompt,
        )


def _prompt(clip: Clip) -> str | None:
    try:
        return clip.prompt()
    except (OSError, ValueError) as error:
        raise UnreadableClip("side_file", f"the JSON file beside the clip cannot be used: {error}") from error
