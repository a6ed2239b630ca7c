"""The export of a shard: files made from its tables and, in a format with clips, its clips."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from itertools import groupby
from operator import itemgetter

from caption_assets.errors import CaptionAssetsError
from caption_assets.export.card import write_card
from caption_assets.export.clip import CaptionedClip, ShardTables, open_tables
from caption_assets.export.config import ExportConfig
from caption_assets.export.formats import layout_of
from caption_assets.export.formats.layout import EncodedSample, FormatLayout
from caption_assets.export.index import (
    DATASET,
    ExportedFile,
    ExportIndex,
    find_index,
    is_complete,
    remove_unlisted,
    shard_folder,
    write_index,
)
from caption_assets.export.selected_clips import select_clips
from caption_assets.export.token_budget import TokenTally, tally_of
from caption_assets.sources.manifest import ClipChanged, read_clip
from caption_assets.store.corrections import CorrectionCounts, compact_corrections
from caption_assets.store.disk import temporary_folder
from caption_assets.store.failure_limits import FailureLimits, Failures
from caption_assets.store.root import Root
from caption_assets.store.tables import CLIP_MANIFEST, caption_rows, manifest_rows

PARALLEL_READS = 4
"""Number of clips read concurrently. These and the clip being written are in memory."""


class ExportError(CaptionAssetsError):
    """A shard whose clips or files changed, so that it cannot be exported."""


@dataclass(frozen=True, slots=True)
class ExportResult:
    """The result of an export."""

    index: ExportIndex
    written: bool
    """Whether files were written; false if the present files are up to date."""
    is_corrected: bool = False
    """Whether it read corrections that no earlier export had read."""


def export_shard(root: Root, source: Root, shard: str, export: ExportConfig) -> ExportResult:
    """Write a shard's part of the dataset, replacing an earlier one, and the dataset card.

    ``select_clips`` chooses the windows. Files are named by their content. The shard's index is
    written when all files exist, and other files are removed afterwards, so that the files in the index always belong
    together. The files of a failed export are removed at once, those of a killed export by the next one. The files of
    people's corrections that were read are compacted at the end.

    Args:
        root: the root with the tables and the dataset.
        source: the source of the clips.
        shard: the shard's key.
        export: the settings of the export.

    Raises:
        TableError: if a table is missing, or was not made from the present ones.
        TooManyFailures: if a table has more failures than allowed.
        ExportError: if a clip is missing or changed, or another run exported the shard at the same time.
        StoreError: if the source cannot be read, or the root cannot be written.
    """
    layout = layout_of(export)
    with open_tables(root, shard, export.graph.stages) as tables:
        _check_failures(tables, export.limits)
        content = _summarize(tables, layout, export)
        index = find_index(root, shard)
        written = index is None or index.version != content.version or not is_complete(root, shard, index)
        try:
            corrections = asdict(count_corrections(tables))
            if index is None or written:
                files = tuple(_write(root, source, tables, layout, export, content.version))
                index = ExportIndex(
                    content.version,
                    content.clips,
                    content.windows,
                    dict(content.left_out),
                    files,
                    corrections,
                    content.tokens.counts,
                )
                write_index(root, shard, index)
            elif (index.corrections, index.tokens) != (corrections, content.tokens.counts):
                index = replace(index, corrections=corrections, tokens=content.tokens.counts)
                write_index(root, shard, index)
        finally:
            remove_unlisted(root, shard, find_index(root, shard))
        if not is_complete(root, shard, index):
            raise ExportError(
                f"files of shard {shard!r} in {root.address(shard_folder(shard))} were removed during its export: "
                f"export it in one run at a time, and materialize {DATASET} again"
            )
        write_card(root, tables, layout, export)
        is_corrected = compact_corrections(root, tables.correction_files)
    return ExportResult(index, written, is_corrected)


def _check_failures(tables: ShardTables, limits: FailureLimits) -> None:
    """Refuse tables with too many failures, which are published but not recorded. Raises ``TooManyFailures``."""
    limits.check(CLIP_MANIFEST, Failures.of_manifest(manifest_rows(tables.manifest)))
    for stage, file in zip(tables.stages, tables.captions, strict=True):
        limits.check(stage.name, Failures.of_captions(caption_rows(file)))


def count_corrections(tables: ShardTables) -> CorrectionCounts:
    """The number of a shard's corrections. The tables are read only if there are some."""
    windows = tables.windows() if tables.corrections.present else ()
    return CorrectionCounts.of(tables.corrections, (item for window in windows for item in window.captions.items()))


@dataclass(slots=True)
class _Summary:
    """The version and counts of a shard's samples."""

    version: str = ""
    clips: int = 0
    windows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    tokens: TokenTally = field(default_factory=TokenTally)


def _summarize(tables: ShardTables, layout: FormatLayout, export: ExportConfig) -> _Summary:
    found, digest = _Summary(tokens=tally_of(tables.root, export.budget)), sha256(export.version.encode())
    for clip in select_clips(tables, export):
        found.clips += bool(clip.windows)
        found.windows += len(clip.windows)
        found.left_out.update(clip.left_out)
        found.tokens.add(clip)
        records = (json.dumps(sample.record) for sample in layout.samples(clip))
        for line in (clip.row.content_tag, *clip.left_out, *records):
            digest.update(f"{line}\n".encode())
    found.version = digest.hexdigest()[:16]
    return found


def _write(
    root: Root, source: Root, tables: ShardTables, layout: FormatLayout, export: ExportConfig, version: str
) -> Iterator[ExportedFile]:
    """Write the shard's files to a temporary folder, and publish each."""
    samples = _samples(source, (clip for clip in select_clips(tables, export) if clip.windows), layout)
    for number, part in groupby(_numbered(samples, export.file_bytes), itemgetter(0)):
        name = f"{version}-{number:05}.{layout.suffix}"
        with temporary_folder() as folder:
            path = folder / name
            with path.open("wb") as file:
                count = layout.write(file, (sample for _, sample in part))
            root.upload(f"{shard_folder(tables.shard)}/{name}", path)
            yield ExportedFile(name, path.stat().st_size, count)


def _numbered(samples: Iterable[EncodedSample], limit: int) -> Iterator[tuple[int, EncodedSample]]:
    """The samples, each with the number of its file."""
    number = size = 0
    for sample in samples:
        if size and size + sample.size > limit:
            number, size = number + 1, 0
        size += sample.size
        yield number, sample


def _samples(source: Root, clips: Iterable[CaptionedClip], layout: FormatLayout) -> Iterator[EncodedSample]:
    """The samples of the clips, with some clips prefetched."""
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        pending: deque[Future[list[EncodedSample]]] = deque()
        for clip in clips:
            pending.append(pool.submit(_encode, source, clip, layout))
            if len(pending) == PARALLEL_READS:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()


def _encode(source: Root, clip: CaptionedClip, layout: FormatLayout) -> list[EncodedSample]:
    """The samples of a clip with the bytes of their videos."""
    try:
        video = read_clip(source, clip.row) if layout.contains_clips else b""
    except ClipChanged as error:
        raise ExportError(f"{error}. Shard {clip.shard!r} was not exported") from None
    return [EncodedSample(sample.key, layout.encode(sample.record), video) for sample in layout.samples(clip)]
