"""The rows of a shard's manifest: its clips, probed and cut into windows."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace

from caption_assets.errors import CaptionAssetsError, UnreadableClip
from caption_assets.sources.clip import Clip
from caption_assets.sources.listing import OtherFiles, list_clips
from caption_assets.sources.shard import Shard, ShardError
from caption_assets.store.content_tag import ContentTag, etag_tag
from caption_assets.store.failure import explain
from caption_assets.store.root import Root
from caption_assets.store.span import Span
from caption_assets.store.span_file import SpanFile
from caption_assets.store.tables import ManifestRow, Status, window_id
from caption_assets.video.probe import Probe, probe_by_ranges
from caption_assets.video.window import MIN_WINDOW_FRAMES, Windowing, split_into_windows
from caption_assets.workers.sandbox import Sandbox

PROBE_WORKERS = 8
"""Default number of workers that probe clips: each waits for the store most of the time."""
PIECE_BYTES = 16 << 20
"""Maximum size of a request for a clip's bytes, in bytes: a clip of 2 GiB takes 128 requests."""
CLIPS_PER_WORKER = 8
"""Maximum number of clips in progress per worker, so that a slow clip does not delay the others."""


@dataclass(frozen=True, slots=True)
class ProbedClip:
    """The manifest rows of one clip."""

    size: int
    """Size of the clip's file, in bytes."""
    bytes_read: int
    """Number of bytes fetched to probe it."""
    rows: tuple[ManifestRow, ...]
    """One row per window, or one failed row with the reason."""


def probe_clips(
    sandbox: Sandbox, source: Root, shard: Shard, windowing: Windowing, others: OtherFiles | None = None
) -> Iterator[ProbedClip]:
    """Probe the clips of a shard in parallel, and yield them in the order of the listing.

    Args:
        sandbox: the workers that probe.
        source: the root that contains the shard.
        shard: the shard to probe.
        windowing: sizes of windows.
        others: counts the shard's files that are not clips.

    Raises:
        ShardError: if the shard cannot be listed or has no clips.
    """
    yield from probe_listed(sandbox, _list_clips(source, shard, others), windowing, _base(source))


def probe_listed(sandbox: Sandbox, clips: Iterable[Clip], windowing: Windowing, base: str = "") -> Iterator[ProbedClip]:
    """Probe clips in parallel, and yield them in their order.

    Args:
        sandbox: the workers that probe.
        clips: the clips.
        windowing: sizes of windows.
        base: start of the URLs of clips in the source, which the rows omit.
    """
    waiting: deque[tuple[Clip, Future[ProbedClip]]] = deque()
    for clip in clips:
        waiting.append((clip, sandbox.submit(_probe_clip, clip, base, windowing)))
        if len(waiting) == CLIPS_PER_WORKER * sandbox.workers:
            yield _result(sandbox, base, *waiting.popleft())
    while waiting:
        yield _result(sandbox, base, *waiting.popleft())


def _result(sandbox: Sandbox, base: str, clip: Clip, job: Future[ProbedClip]) -> ProbedClip:
    try:
        return sandbox.result(job)
    except UnreadableClip as error:  # it crashed the worker or exceeded a limit
        return _refused_clip(clip, base, error)


def span_of(source: Root, row: ManifestRow) -> Span:
    """The span of a row's clip."""
    url = row.uri if "://" in row.uri else _base(source) + row.uri
    return Span(url, row.offset, row.bytes, access=source.access)


class ClipChanged(Exception):
    """A clip whose content differs from that in its manifest."""

    kind = "clip_changed"
    """Error kind in tables."""


def read_clip(source: Root, row: ManifestRow) -> bytes:
    """Read the bytes of a row's clip.

    Raises:
        ClipChanged: if they differ from those that were probed.
    """
    return b"".join(clip_pieces(source, row))


def clip_pieces(source: Root, row: ManifestRow) -> Iterator[bytes]:
    """Read the bytes of a row's clip in pieces of ``PIECE_BYTES``.

    Raises:
        ClipChanged: at the latest after the last piece, if they differ from those that were probed.
    """
    span = span_of(source, row)
    tag = ContentTag()
    try:
        found = span.info()
        for start in range(0, max(span.size, 1), PIECE_BYTES):
            piece = span.read_range(start, min(start + PIECE_BYTES, span.size))
            tag.update(piece)
            yield piece
    except FileNotFoundError:
        raise ClipChanged(f"clip {row.clip_key!r} was deleted: materialize clip_manifest again") from None
    whole = span.offset == 0 and found["size"] == span.size
    etag = found.get("ETag") if whole else None
    if tag.size != span.size or row.content_tag != (etag_tag(etag) if etag else tag.hexdigest()):
        raise ClipChanged(
            f"clip {row.clip_key!r} has changed since clip_manifest was materialized: materialize it again"
        )


def _base(source: Root) -> str:
    return f"{source.fs.unstrip_protocol(source.path)}/"


def _list_clips(source: Root, shard: Shard, others: OtherFiles | None) -> Iterator[Clip]:
    try:
        yield from list_clips(source, shard, others)
    except CaptionAssetsError:
        raise
    except Exception as error:  # stores raise OSError, botocore's errors, and those of other clients
        what = f"cannot list the clips of shard {shard.key!r} in {source.url!r}"
        raise ShardError(f"{what}: {explain(error)}") from error


def _probe_clip(clip: Clip, base: str, windowing: Windowing) -> ProbedClip:
    """The rows of one clip. Runs in a worker."""
    if clip.refusal:
        return _refused_clip(clip, base, clip.refusal)
    row, file = _clip_row(clip, base, tag=""), SpanFile(clip.video)
    try:
        row = _clip_row(clip, base, file.tag())
        rows = tuple(_window_rows(_with_metadata(clip, row), probe_by_ranges(file), windowing))
    except UnreadableClip as error:
        rows = (replace(row, error_kind=error.kind, error=str(error)),)
    return ProbedClip(clip.video.size, file.bytes_read, rows)


def _refused_clip(clip: Clip, base: str, reason: UnreadableClip) -> ProbedClip:
    row = replace(_clip_row(clip, base, tag=""), error_kind=reason.kind, error=str(reason))
    return ProbedClip(clip.video.size, 0, (row,))


def _with_metadata(clip: Clip, row: ManifestRow) -> ManifestRow:
    """The row with the clip's prompt and extra values."""
    try:
        metadata = clip.metadata()
        extra = json.dumps(metadata.extra, ensure_ascii=False) if metadata.extra else None
        return replace(row, prompt=metadata.prompt, extra=extra)
    except ValueError as error:
        raise UnreadableClip("side_file", str(error)) from error


def _clip_row(clip: Clip, base: str, tag: str) -> ManifestRow:
    """The row of a clip before it is probed."""
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


def _window_rows(row: ManifestRow, found: Probe, windowing: Windowing) -> Iterator[ManifestRow]:
    if found.frames < MIN_WINDOW_FRAMES:
        raise UnreadableClip(
            "too_short", f"the clip has {found.frames} frames, below the minimum of {MIN_WINDOW_FRAMES} for a window"
        )
    variable_fps = found.variable_fps
    for window in split_into_windows(found.times, found.seconds, windowing):
        yield replace(
            row,
            window_index=window.index,
            window_id=window_id(row.clip_key, window.index, row.content_tag),
            status=Status.OK,
            codec=found.codec,
            width=found.width,
            height=found.height,
            rotation=found.rotation,
            mirrored=found.mirrored,
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
        )
