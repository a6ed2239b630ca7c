"""The export of a shard: files made from its tables and, in a format with clips, its clips."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from itertools import groupby
from operator import itemgetter

from caption_assets.errors import CaptionAssetsError
from caption_assets.export.card import write_card
from caption_assets.export.clip import CaptionedClip, ShardTables, VideoFile, open_tables
from caption_assets.export.config import Cut, ExportConfig
from caption_assets.export.duplicates import FrequentText, TextFrequencies
from caption_assets.export.formats import layout_of
from caption_assets.export.formats.layout import EncodedSample, FormatLayout, Videos, no_sidecars
from caption_assets.export.index import (
    DATASET,
    INDEX,
    ExportedFile,
    ExportIndex,
    file_sizes,
    find_index,
    is_complete,
    remove_unlisted,
    shard_folder,
    write_index,
)
from caption_assets.export.merged import remove_merged
from caption_assets.export.selected_clips import limit_clip, select_clips
from caption_assets.export.text_counts import TextTally
from caption_assets.export.token_budget import TokenTally, tally_of
from caption_assets.export.video_files import CHANGING_KINDS, VideoFileWriter, with_video_files
from caption_assets.sources.manifest import ClipChanged, read_clip
from caption_assets.store.corrections import CorrectionCounts, compact_corrections
from caption_assets.store.disk import temporary_folder
from caption_assets.store.failure_limits import FailureLimits, Failures, TooManyFailures
from caption_assets.store.root import Root
from caption_assets.store.tables import CLIP_MANIFEST, caption_rows, manifest_rows
from caption_assets.workers.sandbox import Sandbox

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
    most_frequent: FrequentText | None = None
    """The shard's text that the whole dataset has most often."""


def export_shard(
    root: Root, source: Root, shard: str, export: ExportConfig, start_workers: Callable[[], Sandbox] = Sandbox
) -> ExportResult:
    """Write a shard's part of the dataset, replacing an earlier one, and the dataset card.

    ``select_clips`` chooses the windows. Files are named by their content. The shard's index is
    written when all files exist, and other files are removed afterwards, so that the files in the index always belong
    together. The sample files of a failed export are removed at once, those of a killed export by the next one. Its
    video files are kept for the next export, which makes only the others. The files of people's corrections that were
    read are compacted at the end.

    Args:
        root: the root with the tables and the dataset.
        source: the source of the clips.
        shard: the shard's key.
        export: the settings of the export.
        start_workers: starts the processes in which windows are cut.

    Raises:
        TableError: if a table is missing, or was not made from the present ones.
        TooManyFailures: if a table has more failures than allowed, or too many windows cannot be cut.
        ExportError: if a clip is missing or changed, or another run exported the shard at the same time.
        StoreError: if the source cannot be read, or the root cannot be written.
    """
    frequencies = TextFrequencies(root, shard, export)
    with open_tables(root, shard, export.graph.stages) as opened:
        _check_failures(opened, export.limits)
        tables = replace(opened, limit=frequencies.limit())
        index, sizes = find_index(root, shard), file_sizes(root, shard)
        not_cut = dict(index.not_cut) if index else {}
        work = _ShardExport(root, source, tables, export, layout_of(export), start_workers, not_cut)
        content = work.summarize(frequencies.tally())
        written = not _is_current(index, content, sizes)
        if written:
            try:
                if work.write_videos(sizes):
                    content = work.summarize(frequencies.tally())  # other windows are left out
                    written = not _is_current(index, content, sizes)
                if written:
                    if index is not None:  # the merged files name the shard's files, of which some will be removed
                        remove_merged(root)
                    index = work.publish(content)
            except ClipChanged as error:
                raise ExportError(f"{error}. Shard {shard!r} was not exported") from None
            finally:
                remove_unlisted(root, shard, find_index(root, shard), prefix=f"{content.version}-")
        assert index is not None
        corrections = asdict(count_corrections(tables))
        if (index.corrections, index.tokens) != (corrections, content.tokens.counts):
            index = replace(index, corrections=corrections, tokens=content.tokens.counts)
            write_index(root, shard, index)
        remove_unlisted(root, shard, index)
        if not is_complete(index, file_sizes(root, shard)):
            raise ExportError(
                f"files of shard {shard!r} in {root.address(shard_folder(shard))} were removed during its export: "
                f"export it in one run at a time, and materialize {DATASET} again"
            )
        write_card(root, tables, work.layout, export)
        remove_merged(root, work.layout)
        is_corrected = compact_corrections(root, tables.correction_files)
    return ExportResult(index, written, is_corrected, frequencies.most_frequent(content.texts))


def _is_current(index: ExportIndex | None, content: _Summary, sizes: Mapping[str, int]) -> bool:
    """Whether the stored files have this content."""
    return index is not None and index.version == content.version and is_complete(index, sizes)


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
    texts: TextTally | None = None


@dataclass(frozen=True, slots=True)
class _ShardExport:
    """The files of one export of a shard."""

    root: Root
    source: Root
    tables: ShardTables
    export: ExportConfig
    layout: FormatLayout
    start_workers: Callable[[], Sandbox]
    not_cut: dict[str, str]
    """The kind of error of each window file that cannot be made, by name."""

    def clips(self) -> Iterator[CaptionedClip]:
        """The clips to export, with the video files of their windows."""
        selected = select_clips(self.tables, self.export)
        found = with_video_files(selected, self.layout.videos, self.export.cut, self.not_cut)
        return (limit_clip(clip, self.layout.limit) for clip in found)

    def summarize(self, texts: TextTally | None) -> _Summary:
        """The version and counts of the samples; ``texts`` counts their texts."""
        found = _Summary(tokens=tally_of(self.tables.root, self.export.budget), texts=texts)
        digest = sha256(self.export.version.encode())
        for clip in self.clips():
            found.clips += bool(clip.windows)
            found.windows += len(clip.windows)
            found.left_out.update(clip.left_out)
            found.tokens.add(clip)
            if texts is not None:
                texts.add(clip)
            videos = (window.video.path for window in clip.windows if window.video)
            records = (json.dumps(sample.record) for sample in self.layout.samples(clip))
            for line in (clip.row.content_tag, *clip.left_out, *videos, *records):
                digest.update(f"{line}\n".encode())
        found.version = digest.hexdigest()[:16]
        return found

    def write_videos(self, present: Mapping[str, int]) -> bool:
        """Write the video files that do not exist, and return whether some cannot be made.

        Args:
            present: size of each file that exists, by name.

        Raises:
            TooManyFailures: if more cannot be made than the limits allow.
        """
        writer = VideoFileWriter(
            self.root, self.source, self.tables.shard, self.export.cut, self.start_workers, present.keys()
        )
        if self.export.cut.cut is Cut.NONE:
            if self.layout.videos is Videos.CLIPS:
                writer.copy(self.clips(), PARALLEL_READS)
            return False
        found = writer.cut(self.clips())
        self.not_cut.update((name, error.kind) for name, error in found.items())
        if found:
            total = sum(len(clip.windows) for clip in select_clips(self.tables, self.export))
            first = next(iter(found.values()))
            check_cut(Failures(len(self.not_cut), total, str(first)), self.export.limits)
        return bool(found)

    def publish(self, content: _Summary) -> ExportIndex:
        """Write the files of samples and the index; the video files exist."""
        files = (*self._sample_files(content.version), *self._video_files(), *self._sidecars())
        index = ExportIndex(
            content.version,
            content.clips,
            content.windows,
            dict(content.left_out),
            files,
            asdict(count_corrections(self.tables)),
            content.tokens.counts,
            {name: kind for name, kind in self.not_cut.items() if kind not in CHANGING_KINDS},
            self.export.form,
        )
        write_index(self.root, self.tables.shard, index)
        return index

    def _video_files(self) -> Iterator[ExportedFile]:
        """The video files beside the files of samples."""
        if self.layout.videos is Videos.INSIDE:
            return
        sizes = file_sizes(self.root, self.tables.shard)
        for clip in self.clips():
            for path in dict.fromkeys(window.video.path for window in clip.windows if window.video):
                name = path.rpartition("/")[2]
                yield ExportedFile(name, sizes.get(name, -1), 0)  # one that was removed makes the index incomplete

    def _sidecars(self) -> Iterator[ExportedFile]:
        if self.layout.sidecars is no_sidecars:  # saves a pass over the tables
            return
        # Their names stay the same: an export that ends among them leaves texts of both, and must leave no index.
        self.root.remove(f"{shard_folder(self.tables.shard)}/{INDEX}")
        for clip in self.clips():
            for name, content in self.layout.sidecars(clip):
                self.root.write(f"{shard_folder(self.tables.shard)}/{name}", content)
                yield ExportedFile(name, len(content), 0)

    def _sample_files(self, version: str) -> Iterator[ExportedFile]:
        """Write the files of samples to a temporary folder, and publish each."""
        samples = self._samples(clip for clip in self.clips() if clip.windows)
        for number, part in groupby(_numbered(samples, self.export.file_bytes), itemgetter(0)):
            name = f"{version}-{number:05}.{self.layout.suffix}"
            with temporary_folder() as folder:
                path = folder / name
                with path.open("wb") as file:
                    count = self.layout.write(file, (sample for _, sample in part))
                size, indexes = path.stat().st_size, list(self.layout.file_indexes(path))
                self.root.take(f"{shard_folder(self.tables.shard)}/{name}", path)
            yield ExportedFile(name, size, count)
            for suffix, content in indexes:
                self.root.write(f"{shard_folder(self.tables.shard)}/{name}{suffix}", content)
                yield ExportedFile(f"{name}{suffix}", len(content), 0)

    def _samples(self, clips: Iterable[CaptionedClip]) -> Iterator[EncodedSample]:
        """The samples of the clips, with some clips prefetched."""
        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            pending: deque[Future[list[EncodedSample]]] = deque()
            for clip in clips:
                pending.append(pool.submit(self._encode, clip))
                if len(pending) == PARALLEL_READS:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()

    def _encode(self, clip: CaptionedClip) -> list[EncodedSample]:
        """The samples of a clip, with the bytes of their videos if the format's files contain them."""
        samples = self.layout.samples(clip)
        is_inside = self.layout.videos is Videos.INSIDE
        video = b""
        if is_inside and self.export.cut.cut is Cut.NONE:
            video = read_clip(self.source, clip.row)
        return [
            EncodedSample(
                sample.key,
                self.layout.encode(sample.record),
                self._read(sample.window.video) if is_inside and sample.window and sample.window.video else video,
            )
            for sample in samples
        ]

    def _read(self, video: VideoFile) -> bytes:
        return self.root.read(f"{DATASET}/{video.path}")


def check_cut(found: Failures, limits: FailureLimits) -> None:
    """Refuse a shard in which too many windows cannot be cut.

    Raises:
        TooManyFailures: with the counts, the limits and the first failure.
    """
    if exceeded := limits.failed.exceeded(found):
        allowed = " and ".join(f"{name} = {value:g}" for name, value in exceeded.items())
        raise TooManyFailures(
            f"{found.failed} of {found.total} windows cannot be cut, more than {allowed}; the first: {found.first}. "
            f"Raise {' or '.join(exceeded)} to leave them out, or export without CAPTION_EXPORT_CUT"
        )


def _numbered(samples: Iterable[EncodedSample], limit: int) -> Iterator[tuple[int, EncodedSample]]:
    """The samples, each with the number of its file."""
    number = size = 0
    for sample in samples:
        if size and size + sample.size > limit:
            number, size = number + 1, 0
        size += sample.size
        yield number, sample
