"""A shard's manifest: every clip probed and cut into windows, one row each."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace

from caption_assets.errors import CaptionAssetsError, UnreadableClip
from caption_assets.sources.clip import Clip
from caption_assets.sources.listing import OtherFiles, list_clips
from caption_assets.sources.shard import Shard, ShardError
from caption_assets.store.content_tag import PiecewiseTag, etag_tag
from caption_assets.store.failure import explain
from caption_assets.store.root import Root
from caption_assets.store.span import Span
from caption_assets.store.span_file import SpanFile
from caption_assets.store.tables import ManifestRow, Status, window_id
from caption_assets.video.probe import Probe, probe_by_ranges
from caption_assets.video.window import MIN_WINDOW_FRAMES, Windowing, split
from caption_assets.workers.sandbox import Sandbox

PROBE_WORKERS = 8
"""Workers for a sandbox that probes, by default: each waits for the store most of the time."""
PIECE_BYTES = 16 << 20
"""Bytes of a clip in one request: in a clip of 2 GiB, 128 of them."""
CLIPS_AHEAD = 8
"""Clips taken up before the first of them is handed on, for each worker: a slow one does not hold up the others."""


@dataclass(frozen=True, slots=True)
class ProbedClip:
    """One clip's rows, and what they cost."""

    size: int
    """Length of the clip's file."""
    bytes_read: int
    """Bytes of it that were fetched."""
    rows: tuple[ManifestRow, ...]
    """One for each window, or one that says why there is none."""


def probe_clips(
    sandbox: Sandbox, source: Root, shard: Shard, windowing: Windowing, others: OtherFiles | None = None
) -> Iterator[ProbedClip]:
    """The shard's clips, probed many at a time in a sandbox's workers and handed on in the order of the listing.

    Args:
        sandbox: its workers.
        source: which holds the shard.
        shard: whose clips to probe.
        windowing: how they are cut.
        others: gets the shard's files that are not clips.

    Raises:
        ShardError: if the shard cannot be listed, or nothing in it is taken for a clip.
    """
    base = _base(source)
    waiting: deque[tuple[Clip, Future[ProbedClip]]] = deque()
    for clip in _listed(source, shard, others):
        waiting.append((clip, sandbox.submit(_probed, clip, base, windowing)))
        if len(waiting) == CLIPS_AHEAD * sandbox.workers:
            yield _outcome(sandbox, base, *waiting.popleft())
    while waiting:
        yield _outcome(sandbox, base, *waiting.popleft())


def _outcome(sandbox: Sandbox, base: str, clip: Clip, job: Future[ProbedClip]) -> ProbedClip:
    try:
        return sandbox.result(job)
    except UnreadableClip as error:  # it took the worker along
        return _refused(clip, base, error)


def span_of(source: Root, row: ManifestRow) -> Span:
    """Where the bytes of a row's clip lie."""
    url = row.uri if "://" in row.uri else _base(source) + row.uri
    return Span(url, row.offset, row.bytes, access=source.access)


class ClipChanged(Exception):
    """A clip whose bytes are not those that its manifest describes."""

    kind = "clip_changed"
    """One word for tables."""


def read_clip(source: Root, row: ManifestRow) -> bytes:
    """The bytes of a row's clip.

    Raises:
        ClipChanged: if they are not those that the row was made from.
    """
    return b"".join(clip_pieces(source, row))


def clip_pieces(source: Root, row: ManifestRow) -> Iterator[bytes]:
    """The bytes of a row's clip, in pieces of ``PIECE_BYTES``.

    Raises:
        ClipChanged: behind the last piece at the latest, if they are not those that the row was made from.
    """
    span = span_of(source, row)
    tag = PiecewiseTag()
    try:
        found = span.info()
        for start in range(0, max(span.size, 1), PIECE_BYTES):
            piece = span.read_range(start, min(start + PIECE_BYTES, span.size))
            tag.add(piece)
            yield piece
    except FileNotFoundError:
        raise ClipChanged(f"clip {row.clip_key!r} is gone: materialize clip_manifest again") from None
    whole = span.offset == 0 and found["size"] == span.size
    etag = found.get("ETag") if whole else None
    if tag.size != span.size or row.content_tag != (etag_tag(etag) if etag else tag.value()):
        raise ClipChanged(
            f"clip {row.clip_key!r} has changed since clip_manifest was materialized: materialize it again"
        )


def _base(source: Root) -> str:
    return f"{source.fs.unstrip_protocol(source.path)}/"


def _listed(source: Root, shard: Shard, others: OtherFiles | None) -> Iterator[Clip]:
    try:
        yield from list_clips(source, shard, others)
    except CaptionAssetsError:
        raise
    except Exception as error:  # stores have many: OSError, botocore's, their clients'
        what = f"the clips of shard {shard.key!r} in {source.url!r} cannot be listed"
        raise ShardError(f"{what}: {explain(error)}") from error


def _probed(clip: Clip, base: str, windowing: Windowing) -> ProbedClip:
    """In a worker: one clip's rows."""
    if clip.refusal:
        return _refused(clip, base, clip.refusal)
    row, file = _clip_row(clip, base, tag=""), SpanFile(clip.video)
    try:
        row = _clip_row(clip, base, file.tag())
        rows = tuple(_window_rows(_with_metadata(clip, row), probe_by_ranges(file), windowing))
    except UnreadableClip as error:
        rows = (replace(row, error_kind=error.kind, error=str(error)),)
    return ProbedClip(clip.video.size, file.bytes_read, rows)


def _refused(clip: Clip, base: str, reason: UnreadableClip) -> ProbedClip:
    row = replace(_clip_row(clip, base, tag=""), error_kind=reason.kind, error=str(reason))
    return ProbedClip(clip.video.size, 0, (row,))


def _with_metadata(clip: Clip, row: ManifestRow) -> ManifestRow:
    """The row with what was said of the clip where it is listed."""
    try:
        metadata = clip.metadata()
        extra = json.dumps(metadata.extra, ensure_ascii=False) if metadata.extra else None
        return replace(row, prompt=metadata.prompt, extra=extra)
    except ValueError as error:
        raise UnreadableClip("side_file", str(error)) from error


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


def _window_rows(row: ManifestRow, found: Probe, windowing: Windowing) -> Iterator[ManifestRow]:
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
