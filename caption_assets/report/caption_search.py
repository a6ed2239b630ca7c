"""Search over the captions of all shards: a scan of their tables by DuckDB, which ends when it has enough.

There is no index: a scan of 1,000,000 captions takes about a second (benchmarks/dashboard.py), and an index would have
to follow each publication. DuckDB reads the files of a local root itself. Those of object storage are read in parallel,
some shards at a time, so that memory stays bounded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from caption_assets.errors import CaptionAssetsError
from caption_assets.report.sides import position, stage_label
from caption_assets.store.caption_columns import PROBABILITIES
from caption_assets.store.root import Root
from caption_assets.store.tables import SHARD, TableError, load_table, stored_shards, table_path
from caption_assets.store.versions import open_footer

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

LIMIT = 100
"""Maximum number of hits."""
MAX_LETTERS = 200
"""Maximum length of a query."""
CAPTION = 2000
"""Maximum length of a caption among the hits, in characters."""
PARALLEL_READS = 16
"""Number of tables of object storage that are read and searched at a time."""
COLUMNS = ("clip_key", "window_index", "start_seconds", "end_seconds", "caption")
LOCAL_TABLES = rf"""(
    select regexp_extract(filename, '/shard=([^/]+)/[^/]+$', 1) as shard, {", ".join(COLUMNS)}
    from read_parquet($paths, hive_partitioning = false, filename = true)
)"""
"""The tables of a local root. Those of the first release have no column ``shard``."""
_TERM = re.compile(r'"([^"]+)"|([^\s"]+)')


class SearchError(CaptionAssetsError):
    """A query that cannot be searched for."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A caption with all words of a query."""

    shard: str
    stage: str
    """The stage's name for readers."""
    clip: str
    position: str
    """The window's number and time range."""
    caption: str


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The first hits of a query, sorted by stage and shard, in the order of the tables."""

    hits: Sequence[Hit]
    has_more: bool
    unsearched: int
    """Number of damaged tables, which were not searched."""


class CaptionSearch:
    """Searches the captions of a root. Its methods are thread-safe.

    Args:
        root: the root.
        stages: names of the stages, in the order of the hits. Choices are not searched: there are few.
    """

    def __init__(self, root: Root, stages: Sequence[str]) -> None:
        self._root = root
        self._stages = stages

    def find(self, query: str, limit: int = LIMIT) -> SearchResult:
        """The captions that contain all words and quoted phrases of a query, ignoring case.

        Raises:
            SearchError: if the query is empty or too long.
            StoreError: if the root cannot be read.
        """
        terms = search_terms(query)
        search = self._search_local if self._root.is_local else self._search_remote
        hits: list[Hit] = []
        damaged = 0
        with _connection().cursor() as cursor:
            for stage in self._stages:
                for shards in self._batches(stage):
                    found, unsearched = search(_Scan(cursor, stage, terms, limit + 1 - len(hits)), shards)
                    hits += found
                    damaged += unsearched
                    if len(hits) > limit:
                        return SearchResult(hits[:limit], True, damaged)
        return SearchResult(hits, False, damaged)

    def _batches(self, stage: str) -> list[list[str]]:
        """The shards of a stage that are searched at a time; none if its captions are choices."""
        shards = sorted(stored_shards(self._root, stage))
        if self._has_choices(stage, shards):
            return []
        size = len(shards) if self._root.is_local else PARALLEL_READS
        return [shards[begin : begin + size] for begin in range(0, len(shards), size or 1)]

    def _has_choices(self, stage: str, shards: Sequence[str]) -> bool:
        """Whether the captions of a stage are choices, from the first readable table."""
        for shard in shards:
            try:
                with open_footer(self._root, stage, shard) as file:
                    return PROBABILITIES in file.schema_arrow.names
            except (TableError, FileNotFoundError):
                continue
        return False

    def _search_local(self, scan: _Scan, shards: Sequence[str]) -> tuple[list[Hit], int]:
        """The hits in some shards, and the number of damaged tables. If there is one, each shard is searched alone."""
        import duckdb

        paths = [self._root.full(table_path(scan.stage, shard)) for shard in shards]
        try:
            return scan.run(LOCAL_TABLES, paths=paths), 0
        except duckdb.Error:  # a table is damaged, or was removed in the meantime
            if len(shards) == 1:
                return [], 1
        hits: list[Hit] = []
        damaged = 0
        for shard in shards:
            found, unsearched = self._search_local(replace(scan, limit=scan.limit - len(hits)), [shard])
            hits += found
            damaged += unsearched
        return hits, damaged

    def _search_remote(self, scan: _Scan, shards: Sequence[str]) -> tuple[list[Hit], int]:
        """The hits in some shards of object storage, and the number of damaged tables."""
        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            tables = list(pool.map(lambda shard: self._read(scan.stage, shard), shards))
        sound = [table for table in tables if table is not None]
        if not sound:
            return [], len(tables)
        scan.cursor.register("captions", pa.concat_tables(sound))
        return scan.run("captions"), tables.count(None)

    def _read(self, stage: str, shard: str) -> pa.Table | None:
        """The searched columns of a table; None if it is damaged or was removed in the meantime."""
        try:
            with load_table(self._root, stage, shard) as file:
                table = file.read(COLUMNS)
        except TableError:
            return None
        return table.add_column(0, SHARD, pa.repeat(pa.scalar(shard, SHARD.type), table.num_rows))


@dataclass(frozen=True, slots=True)
class _Scan:
    """A scan of some tables of a stage."""

    cursor: DuckDBPyConnection
    stage: str
    terms: Sequence[str]
    limit: int

    def run(self, tables: str, **parameters: Any) -> list[Hit]:
        """The first hits. ``tables`` is SQL; all texts of the user are bound parameters."""
        parameters |= {f"term{number}": term for number, term in enumerate(self.terms)}
        found = " and ".join(
            f"regexp_matches(caption, regexp_escape($term{number}), 'i')" for number in range(len(self.terms))
        )
        rows = self.cursor.execute(
            f"select shard, clip_key, window_index, start_seconds, end_seconds, left(caption, {CAPTION}) "
            f"from {tables} where {found} limit {self.limit}",
            parameters,
        ).fetchall()
        return [
            Hit(shard, stage_label(self.stage), clip, position(number, begin, end), caption)
            for shard, clip, number, begin, end, caption in rows
        ]


def search_terms(query: str) -> list[str]:
    """The words and quoted phrases of a query.

    Raises:
        SearchError: if it has none, or is too long.
    """
    if len(query) > MAX_LETTERS:
        raise SearchError(f"the search has {len(query)} characters, more than {MAX_LETTERS}: leave out words")
    terms = [phrase or word for phrase, word in _TERM.findall(query)]
    if not terms:
        raise SearchError("the search has no words: give one")
    return terms


@cache
def _connection() -> DuckDBPyConnection:
    """The database of the process, which holds nothing. Its cursors are independent of each other."""
    import duckdb  # here, because few processes search

    return duckdb.connect(config={"autoinstall_known_extensions": False, "autoload_known_extensions": False})
