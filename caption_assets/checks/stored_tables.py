"""The stored tables of a shard. Each is read once and shared by checks, gallery, plots and metadata."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import TopologicalSorter
from statistics import fmean

import pyarrow as pa

from caption_assets.captioning.open_shard import RECIPE, RECIPE_VERSION
from caption_assets.captioning.output import json_text
from caption_assets.captioning.stages import NAME, RESERVED_NAMES
from caption_assets.captioning.text import split_words
from caption_assets.store.caption_columns import FIELDS, PROBABILITIES
from caption_assets.store.corrections import Corrections, read_corrections
from caption_assets.store.root import Root
from caption_assets.store.tables import (
    CLIP_MANIFEST,
    CaptionRow,
    ManifestRow,
    TableError,
    caption_rows,
    manifest_rows,
    needed_stages,
    open_table,
    table_path,
)
from caption_assets.store.versions import read_footer


@dataclass(frozen=True, slots=True)
class Caption:
    """A row that has a caption, with the caption's words."""

    row: CaptionRow
    words: Sequence[str]
    """Lower case, without punctuation. Those of JSON are the words of its strings."""


@dataclass(frozen=True, slots=True)
class StoredTable:
    """A shard's caption table."""

    table: str
    schema: pa.Schema
    """The file's own schema, with its metadata."""
    rows: Sequence[CaptionRow]
    captions: Sequence[Caption]
    """The rows that have a caption."""

    @classmethod
    def of(cls, table: str, schema: pa.Schema, rows: Sequence[CaptionRow]) -> StoredTable:
        """Build a table and split its captions into words."""
        return cls(table, schema, rows, captions_of(rows, schema.names))

    @property
    def mean_words(self) -> float | None:
        """Mean number of words of a caption; None if there are no captions, and for choices."""
        return None if self.has_choices else mean_words(self.captions)

    @property
    def file_metadata(self) -> Mapping[str, str]:
        """The file's metadata."""
        return {name.decode(): value.decode() for name, value in (self.schema.metadata or {}).items()}

    @property
    def needs(self) -> tuple[str, ...]:
        """The stages whose captions were in the prompts."""
        return needed_stages(self.schema)

    @property
    def is_json(self) -> bool:
        """Whether the captions are JSON."""
        return FIELDS in self.schema.names

    @property
    def has_choices(self) -> bool:
        """Whether each caption is one of several choices."""
        return PROBABILITIES in self.schema.names

    @property
    def is_text(self) -> bool:
        """Whether the captions are free text."""
        return not self.is_json and not self.has_choices

    @property
    def score_choice(self) -> str | None:
        """The choice whose probability is the score, if the recipe names one."""
        score = json.loads(self.file_metadata.get(RECIPE, "{}")).get("output", {}).get("score")
        return None if score is None else str(score)


class StoredShard:
    """The tables of a shard. Each is read when it is first used.

    Args:
        root: the root that holds them.
        shard: the shard's key.
    """

    def __init__(self, root: Root, shard: str) -> None:
        self.root = root
        self.shard = shard
        self._tables: dict[str, StoredTable] = {}

    @cached_property
    def manifest(self) -> Sequence[ManifestRow]:
        """The rows of the manifest.

        Raises:
            TableError: if the manifest is missing or damaged.
            StoreError: if the root cannot be read.
        """
        with open_table(self.root, CLIP_MANIFEST, self.shard) as file:
            return list(manifest_rows(file))

    @cached_property
    def corrections(self) -> Corrections:
        """People's corrections of the captions.

        Raises:
            TableError: if a file is damaged.
            StoreError: if the root cannot be read.
        """
        return read_corrections(self.root, self.shard)

    def table(self, table: str) -> StoredTable:
        """A caption table.

        Raises:
            TableError: if the table is missing or damaged.
            StoreError: if the root cannot be read.
        """
        if table not in self._tables:
            with open_table(self.root, table, self.shard) as file:
                self._tables[table] = StoredTable.of(table, file.columns, list(caption_rows(file)))
        return self._tables[table]

    def find(self, table: str) -> StoredTable | None:
        """A caption table; None if it is missing.

        Raises:
            TableError: if the table is damaged.
            StoreError: if the root cannot be read.
        """
        is_known = table in self._tables or self.root.exists(table_path(table, self.shard))
        return self.table(table) if is_known else None

    def caption_tables(self) -> dict[str, StoredTable]:
        """All caption tables of the shard, each after those that it needs.

        Raises:
            TableError: if a table is damaged.
            StoreError: if the root cannot be read.
        """
        found = {name: self.table(name) for name in caption_tables(self.root, self.shard)}
        needs = {name: [need for need in table.needs if need in found] for name, table in found.items()}
        return {name: found[name] for name in TopologicalSorter(needs).static_order()}


def caption_tables(root: Root, shard: str) -> list[str]:
    """The names of a shard's caption tables, whichever recipe they belong to.

    Other folders of the root may have the same layout. Only a readable file that this project wrote counts.

    Raises:
        StoreError: if the root cannot be listed.
    """
    names = (name for name in root.names("") if NAME.fullmatch(name) and name not in RESERVED_NAMES)
    return [name for name in names if _has_captions(root, name, shard)]


def _has_captions(root: Root, table: str, shard: str) -> bool:
    try:
        return RECIPE_VERSION in (read_footer(root, table, shard) or ())
    except TableError:
        return False


def captions_of(rows: Sequence[CaptionRow], columns: Collection[str] = ()) -> list[Caption]:
    """The rows that have a caption, with the caption's words.

    The ``columns`` of their table show whether the captions are JSON.
    """
    text = json_text if FIELDS in columns else str
    return [Caption(row, split_words(text(row.caption))) for row in rows if row.caption is not None]


def mean_words(captions: Sequence[Caption]) -> float | None:
    """Mean number of words; None if there are no captions."""
    return fmean(len(caption.words) for caption in captions) if captions else None


def count_flagged(rows: Sequence[CaptionRow]) -> int:
    """Number of rows with quality flags. Reductions of the input are not quality flags."""
    return sum(bool(row.flags) for row in rows)
