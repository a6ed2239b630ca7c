"""A shard's part of the dataset: made from its three tables, and of its clips where the format holds them."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import groupby
from operator import itemgetter

from caption_assets.errors import CaptionAssetsError
from caption_assets.export.card import write_card
from caption_assets.export.clip import CaptionedClip, ShardTables, open_tables
from caption_assets.export.format import ClipSamples, Export, Form, encoded, sample_key
from caption_assets.export.index import (
    DATASET,
    ExportedFile,
    Index,
    find_index,
    is_whole,
    remove_others,
    shard_folder,
    write_index,
)
from caption_assets.sources.manifest import ClipChanged, read_clip
from caption_assets.store.disk import temporary_folder
from caption_assets.store.root import Root

READERS = 4
"""Clips fetched at once: in memory there are no more, beside the one that is written."""


class ExportError(CaptionAssetsError):
    """A shard whose clips are not those that its tables describe."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What came of an export."""

    index: Index
    written: bool
    """Whether files were written; they are not where they are there already."""


def export_shard(root: Root, source: Root, shard: str, export: Export) -> Exported:
    """Write a shard's part of the dataset in place of an earlier one, and the dataset's card.

    A window is exported if it has both captions. Files are named after their content, the shard's index is written when
    all are there, and others are removed after that: who goes by the index never meets a mixture. What an export
    leaves that fails is removed at once; if it was killed, by the next one.

    Args:
        root: where the tables are and the dataset goes.
        source: where the clips are.
        shard: the shard's key.
        export: how.

    Raises:
        TableError: if a table is missing, or was not made from the others.
        ExportError: if a clip has gone or changed since, or the shard was exported by another run meanwhile.
        StoreError: if the source cannot be read or the root not be written.
    """
    with open_tables(root, shard) as tables:
        content = _content(tables, export)
        index = find_index(root, shard)
        written = index is None or index.version != content.version or not is_whole(root, shard, index)
        try:
            if index is None or written:
                files = tuple(_write(root, source, tables, export, content.version))
                index = Index(content.version, content.clips, content.windows, dict(content.left_out), files)
                write_index(root, shard, index)
        finally:
            remove_others(root, shard, find_index(root, shard))
        if not is_whole(root, shard, index):
            raise ExportError(
                f"files of shard {shard!r} in {root.address(shard_folder(shard))} were removed while it was exported: "
                f"let one run at a time do so, and materialize {DATASET} again"
            )
        write_card(root, tables, export.form, export.licence)
    return Exported(index, written)


@dataclass(slots=True)
class _Content:
    """What the tables hold, counted."""

    version: str = ""
    clips: int = 0
    windows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


def _content(tables: ShardTables, export: Export) -> _Content:
    found, said = _Content(), sha256(export.version.encode())
    for clip in tables.clips():
        found.clips += bool(clip.windows)
        found.windows += len(clip.windows)
        found.left_out.update(clip.left_out)
        for line in (clip.row.content_tag, *clip.left_out, *map(json.dumps, export.form.records(clip))):
            said.update(f"{line}\n".encode())
    found.version = said.hexdigest()[:16]
    return found


def _write(root: Root, source: Root, tables: ShardTables, export: Export, version: str) -> Iterator[ExportedFile]:
    """Publish the shard's files, each made on this machine's disk first."""
    samples = _samples(source, (clip for clip in tables.clips() if clip.windows), export.form)
    for number, part in groupby(_numbered(samples, export.file_bytes), itemgetter(0)):
        name = f"{version}-{number:05}.{export.form.suffix}"
        with temporary_folder() as folder:
            path = folder / name
            with path.open("wb") as file:
                count = export.form.write(file, (sample for _, sample in part))
            root.upload(f"{shard_folder(tables.shard)}/{name}", path)
            yield ExportedFile(name, path.stat().st_size, count)


def _numbered(clips: Iterable[ClipSamples], limit: int) -> Iterator[tuple[int, ClipSamples]]:
    """Clips with the number of the file that each goes to."""
    number = size = 0
    for clip in clips:
        if size and size + clip.size > limit:
            number, size = number + 1, 0
        size += clip.size
        yield number, clip


def _samples(source: Root, clips: Iterable[CaptionedClip], form: Form) -> Iterator[ClipSamples]:
    """Clips as they go into a file, some of them fetched ahead."""
    with ThreadPoolExecutor(READERS) as pool:
        waiting: deque[Future[ClipSamples]] = deque()
        for clip in clips:
            waiting.append(pool.submit(_sample, source, clip, form))
            if len(waiting) == READERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _sample(source: Root, clip: CaptionedClip, form: Form) -> ClipSamples:
    try:
        video = read_clip(source, clip.row) if form.holds_clips else b""
    except ClipChanged as error:
        raise ExportError(f"{error}. Nothing of shard {clip.shard!r} was exported") from None
    return ClipSamples(sample_key(clip), tuple(encoded(record) for record in form.records(clip)), video)
