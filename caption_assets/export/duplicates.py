"""Equal texts over the whole dataset: how often the most frequent one occurs, and the step that limits them."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, replace
from hashlib import sha256

from caption_assets.export.clip import CaptionedWindow, open_tables
from caption_assets.export.config import ExportConfig
from caption_assets.export.index import exported_shards
from caption_assets.export.selected_clips import select_clips
from caption_assets.export.text_counts import CountFiles, TextTally, TextTotals, hash_text
from caption_assets.store.corrections import CORRECTIONS
from caption_assets.store.root import Root
from caption_assets.store.tables import CLIP_MANIFEST, TableError

DUPLICATE = "duplicate"
"""Reason of a window whose texts are all too frequent."""


@dataclass(frozen=True, slots=True)
class FrequentText:
    """The text of a shard that the whole dataset has most often."""

    text: str
    windows: int
    """Number of windows with it, over all counted shards."""
    shards: int
    """Number of shards with it."""
    total: int
    """Number of windows of all counted shards."""


class LimitDuplicates:
    """The step that drops texts which the whole dataset has too often.

    Of ``count`` equal texts a window keeps its own with the probability ``limit / count``, decided by a hash of the
    window. So a shard needs no other one, and the order in which shards are exported does not matter. A window is left
    out if all of its texts are dropped.

    Args:
        totals: the counts over the dataset.
        limit: number of windows with one text to keep.
    """

    def __init__(self, totals: TextTotals, limit: int) -> None:
        self._totals = totals
        self._limit = limit

    def __call__(self, window: CaptionedWindow) -> CaptionedWindow | str:
        """The window with its texts that are not too frequent, or the reason why it is left out."""
        drawn = int(sha256(f"duplicates {window.row.window_id}".encode()).hexdigest()[:16], 16) / 2**64
        texts = tuple(
            text for text in window.texts if drawn * self._totals.windows_with(hash_text(text.text)) < self._limit
        )
        return replace(window, texts=texts) if texts else DUPLICATE


class TextFrequencies:
    """The frequencies of a dataset's texts, for the export of one shard.

    With a limit all shards with captions count, without one those that are exported.

    Args:
        root: the root.
        shard: the shard that is exported.
        export: the settings of the export.
    """

    def __init__(self, root: Root, shard: str, export: ExportConfig) -> None:
        self._root = root
        self._shard = shard
        self._export = export
        self._files = CountFiles(root, _selection_hash(export))
        if export.max_duplicates is None:
            self._versions = dict.fromkeys(exported_shards(root), "") | shard_versions(root, export, shard)
        else:
            self._versions = shard_versions(root, export)

    def limit(self) -> LimitDuplicates | None:
        """The step that limits duplicates, if there is a limit.

        The shards that have captions and no counts are counted first, so that the limit holds before they are exported.

        Raises:
            StoreError: if a file cannot be read or written.
        """
        if self._export.max_duplicates is None:
            return None
        counted = self._files.counted()
        # Each concurrent export begins with its own shard, so that they share the work.
        for shard in sorted(self._versions, key=lambda other: (other < self._shard, other)):
            if (shard, self._versions[shard]) not in counted:
                self._count(shard)
        return LimitDuplicates(self._files.sum(self._versions), self._export.max_duplicates)

    def _count(self, shard: str) -> None:
        tally = TextTally(self._files.totals())
        try:
            with open_tables(self._root, shard, self._export.graph.stages) as tables:
                for clip in select_clips(tables, self._export):
                    tally.add(clip)
        except TableError:  # its own export reports it; it is counted again when its tables change
            tally = TextTally(TextTotals())
        self._files.write(shard, self._versions[shard], tally.counts)

    def tally(self) -> TextTally | None:
        """A tally for the texts of the shard while it is exported; None with a limit, because it is counted before."""
        return TextTally(self._files.totals()) if self._export.max_duplicates is None else None

    def most_frequent(self, tally: TextTally | None) -> FrequentText | None:
        """The shard's text that the whole dataset has most often; None if the shard has no texts.

        Args:
            tally: the tally with its texts.

        Raises:
            StoreError: if a file cannot be read or written.
        """
        if not (version := self._versions.get(self._shard)):  # its tables were published after the listing
            return None
        if tally is not None:
            self._files.write(self._shard, version, tally.counts)
        counts = self._files.read(self._shard, version) if tally is None else tally.counts
        totals = self._files.sum(self._versions)
        if not counts.example:
            return None
        hashed = hash_text(counts.example)
        return FrequentText(counts.example, totals.windows_with(hashed), totals.shards_with(hashed), totals.total)


def shard_versions(root: Root, export: ExportConfig, shard: str | None = None) -> dict[str, str]:
    """A version of each shard that has all tables, which changes with its tables and corrections. From listings only.

    Args:
        root: the root.
        export: the settings of the export.
        shard: the only shard to look up; None for all.

    Raises:
        StoreError: if a folder cannot be listed.
    """
    tables = (CLIP_MANIFEST, *(stage.name for stage in export.graph.stages))
    found: dict[str, list[str]] = defaultdict(list)
    published: dict[str, set[str]] = defaultdict(set)
    for table in (*tables, CORRECTIONS):
        folder = table if shard is None else f"{table}/shard={shard}"
        for path, tag in sorted(root.tags(folder).items()):
            name = path.removeprefix(f"{table}/shard=").rpartition("/")[0]
            found[name].append(f"{path} {tag}")
            published[name].add(table)
    return {
        name: sha256(json.dumps(tags).encode()).hexdigest()[:16]
        for name, tags in found.items()
        if published[name] >= set(tables)
    }


def _selection_hash(export: ExportConfig) -> str:
    return sha256(json.dumps(export.selection).encode()).hexdigest()[:16]
