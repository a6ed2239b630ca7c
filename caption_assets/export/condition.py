"""SQL conditions over the tables of a window, checked and evaluated by DuckDB."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from caption_assets.captioning.stages import Stage
from caption_assets.errors import CaptionAssetsError, printable
from caption_assets.export.clip import ShardTables
from caption_assets.export.corrected import REWRITTEN
from caption_assets.store.corrections import Corrections, Decision
from caption_assets.store.table_file import ROW_GROUP, TableFile
from caption_assets.store.tables import CLIP_MANIFEST, SHARD, published_schema

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

SETTING = "CAPTION_EXPORT_WHERE"
CORRECTION = pa.field("correction", pa.string())
"""Column of each stage: the correction that holds (``accept``, ``reject`` or ``rewrite``); null without one."""
CORRECTION_OUTDATED = pa.field("correction_outdated", pa.bool_())
"""Column of each stage: whether the model's text has changed since that correction; null without one."""
_WINDOW = ("window_id", "start_seconds", "end_seconds")
"""Columns that identify the window of a correction."""
KEYS = (SHARD.name, "clip_key", "window_index", *_WINDOW)
"""Columns that all tables share. Only the manifest has them in a condition, so that their names are unique."""
MEMORY = "512MB"
"""Memory limit of DuckDB, which holds ``ROW_GROUP`` rows at a time."""
THREADS = 2
MAX_SUGGESTIONS = 3
_CLOCKS = frozenset({"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"})
"""Functions of the present time that are parsed as columns."""
_CONNECTION: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "python_enable_replacements": False,
    "memory_limit": MEMORY,
    "threads": THREADS,
}
_UNKNOWN = re.compile(
    r'Values list "(?P<table>[^"]+)" does not have a column named "(?P<column>[^"]+)"'
    r'|Referenced column "(?P<bare>[^"]+)" not found'
    r'|Referenced table "(?P<missing>[^"]+)" not found'
)
_UNREPEATABLE = """
    SELECT function_name FROM duckdb_functions() WHERE function_name IN (SELECT unnest(?)) AND (stability = 'VOLATILE'
    OR (stability = 'CONSISTENT_WITHIN_QUERY' AND function_type = 'scalar' AND len(parameters) = 0))"""
"""A query of the functions of the present time, of chance, and with side effects among some names."""
_PREFIX = "SELECT (\n"
"""The text before a condition. The line break after the condition ends a comment in it."""


class ConditionError(CaptionAssetsError):
    """A condition that cannot be evaluated."""


@dataclass(frozen=True, slots=True)
class Condition:
    """An SQL condition over the joined tables of a window: the manifest and the tables of the stages.

    It can name each column as ``table.column``, or by its name alone if no other table has it. ``caption`` is the text
    of a person if there is a rewrite.
    """

    sql: str
    stages: Sequence[Stage]

    def check(self) -> None:
        """Check the condition on tables of one row of nulls, which also evaluates its constants.

        Raises:
            ConditionError: if it has a syntax error, an unknown name, a type other than boolean, a subquery, or a
                function whose result differs between calls.
        """
        with _connection() as database:
            _refuse(database, self._parse(database))
            for name, schema in self._schemas.items():
                database.register(name, pa.table({field.name: pa.nulls(1, field.type) for field in schema}))
            with self._explained():
                database.execute(f"SELECT 1 {self._joined} WHERE (\n{self.sql}\n)").fetchall()
                [kind] = database.sql(f"{_PREFIX}{self.sql}\n) {self._joined}").types
        if str(kind) != "BOOLEAN":
            raise ConditionError(f"the condition has the type {kind}: write a comparison, which is true or false")

    def select(self, tables: ShardTables) -> Iterator[bool]:
        """Whether the condition is true, for each row of the tables in order. A null counts as false.

        Raises:
            ConditionError: if it cannot be evaluated on a row, such as a cast of a text that is no number.
            TableError: if a table is damaged.
        """
        manifest_parts = _parts(tables.manifest, published_schema(CLIP_MANIFEST))
        stage_parts = [
            _parts(file, _own_schema(stage)) for stage, file in zip(self.stages, tables.captions, strict=True)
        ]
        corrected = [_CorrectedStage(stage.name, tables.corrections) for stage in self.stages]
        query = f"SELECT coalesce((\n{self.sql}\n), false) {self._joined}"
        with _connection() as database:
            for manifest, *parts in zip(manifest_parts, *stage_parts, strict=False):
                database.register(CLIP_MANIFEST, _with_shard(manifest, tables.shard))
                for stage, overlay, rows in zip(self.stages, corrected, parts, strict=True):
                    database.register(stage.name, overlay.apply(rows, manifest))
                with self._explained(f" (in shard {tables.shard!r})"):
                    found = database.execute(query).fetchall()
                yield from (value for (value,) in found)

    @property
    def _schemas(self) -> Mapping[str, pa.Schema]:
        """The columns of each table."""
        stages = {
            stage.name: pa.schema([*_own_schema(stage), CORRECTION, CORRECTION_OUTDATED]) for stage in self.stages
        }
        return {CLIP_MANIFEST: published_schema(CLIP_MANIFEST), **stages}

    @property
    def _joined(self) -> str:
        return "FROM " + " POSITIONAL JOIN ".join(f'"{name}"' for name in self._schemas)

    def _parse(self, database: DuckDBPyConnection) -> Any:
        """The syntax tree of the condition."""
        if not self.sql.strip():
            raise ConditionError("the condition is empty: write one, or unset it")
        expected = _statement(database, "TRUE")
        found = _statement(database, self.sql)
        if found.get("error"):
            raise ConditionError(self._syntax_error(str(found["error_message"]), found.get("position")))
        tree = found["statements"][0]["node"].pop("select_list", ())
        expected["statements"][0]["node"].pop("select_list")
        nodes = [statement["node"] for statement in found["statements"]]
        if nodes != [expected["statements"][0]["node"]] or len(tree) != 1:
            raise ConditionError("this is more than one condition: connect conditions with AND or OR")
        return tree

    def _syntax_error(self, message: str, position: str | None) -> str:
        at = int(position or 0) - len(_PREFIX)
        if at >= len(self.sql.rstrip()):
            return "syntax error at the end: complete the condition"
        return f"{message} (character {max(at, 0) + 1}): correct the SQL"

    @contextmanager
    def _explained(self, where: str = "") -> Iterator[None]:
        """Translate DuckDB's errors."""
        from duckdb import Error

        try:
            yield
        except Error as error:
            raise ConditionError(self._explain(str(error), where)) from None

    def _explain(self, message: str, where: str) -> str:
        if not (found := _UNKNOWN.search(message)):
            return f"{_first_lines(message)}{where}"
        if table := found["missing"]:
            return f"there is no table {table}{_suggest(table, self._schemas)}"
        names = [f"{table}.{column}" for table, schema in self._schemas.items() for column in schema.names]
        if table := found["table"]:
            column = found["column"]
            return f"table {table} has no column {column}{_suggest(f'{table}.{column}', names)}"
        column = found["bare"]
        near = get_close_matches(column, {name.partition(".")[2] for name in names}, MAX_SUGGESTIONS)
        full = [name for one in near for name in names if name.partition(".")[2] == one]
        return f"there is no column {column}{_did_you_mean(full[:MAX_SUGGESTIONS]) or _remedy(names)}"


def _own_schema(stage: Stage) -> pa.Schema:
    """The columns of a stage's table that the manifest does not have."""
    return pa.schema([field for field in published_schema(stage.name, stage.columns) if field.name not in KEYS])


@contextmanager
def _connection() -> Iterator[DuckDBPyConnection]:
    """A database in memory that reads no files, loads no extensions, and whose settings are locked."""
    import duckdb  # slow to import, and only conditions need it

    with duckdb.connect(config=_CONNECTION) as database:
        database.execute("SET lock_configuration = true")
        yield database


def _statement(database: DuckDBPyConnection, condition: str) -> dict[str, Any]:
    """DuckDB's syntax tree of a query of a condition, or the error."""
    query = f"{_PREFIX}{condition}\n)"
    [(found,)] = database.execute("SELECT json_serialize_sql(?::VARCHAR)", [query]).fetchall()
    return dict(json.loads(found))


def _refuse(database: DuckDBPyConnection, tree: Any) -> None:
    """Refuse subqueries, parameters, several columns, and functions with another result in each call.

    Raises:
        ConditionError: with the first one.
    """
    functions = []
    for node in _nodes(tree):
        match node.get("class"):
            case "SUBQUERY":
                raise ConditionError("a subquery is not possible, because a condition is about one window: remove it")
            case "PARAMETER":
                raise ConditionError("a parameter is not possible: write its value")
            case "STAR":
                raise ConditionError("a condition on several columns at once is not possible: name each column")
            case "FUNCTION" if not node["is_operator"]:
                functions.append(node["function_name"])
            case "COLUMN_REF" if (name := node["column_names"][-1]).lower() in _CLOCKS:
                raise ConditionError(_changing(name))
    if functions and (found := database.execute(_UNREPEATABLE, [functions]).fetchall()):
        raise ConditionError(_changing(found[0][0]))


def _changing(function: str) -> str:
    return (
        f"the result of {function} changes from call to call, so that an export could not be repeated: remove it (for "
        "a sample, compare hash(window_id))"
    )


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for child in tree:
            yield from _nodes(child)


def _parts(file: TableFile, schema: pa.Schema) -> Iterator[pa.Table]:
    """A table in parts of ``ROW_GROUP`` rows. A column that a table of an earlier release lacks is null."""
    present = [name for name in schema.names if name in file.columns.names]
    rest = schema.empty_table()
    for batch in file.batches(present):
        columns = [
            batch.column(field.name).cast(field.type) if field.name in present else pa.nulls(batch.num_rows, field.type)
            for field in schema
        ]
        rest = pa.concat_tables([rest, pa.table(columns, schema)]) if rest.num_rows else pa.table(columns, schema)
        while rest.num_rows >= ROW_GROUP:
            yield rest.slice(0, ROW_GROUP)
            rest = rest.slice(ROW_GROUP)
    if rest.num_rows:
        yield rest


def _with_shard(manifest: pa.Table, shard: str) -> pa.Table:
    """A manifest with its shard, which tables of the first releases lack."""
    column = pa.repeat(pa.scalar(shard, SHARD.type), manifest.num_rows)
    return manifest.set_column(manifest.schema.get_field_index(SHARD.name), SHARD, column)


class _CorrectedStage:
    """The corrections of a stage, added to its table.

    Args:
        stage: name of the stage.
        corrections: the corrections of the shard.
    """

    def __init__(self, stage: str, corrections: Corrections) -> None:
        self._by_window = {one.target[:3]: one for one in corrections.present if one.stage == stage}

    def apply(self, rows: pa.Table, manifest: pa.Table) -> pa.Table:
        """Rows of the stage with the columns of corrections. A rewrite replaces its row's caption and ``REWRITTEN``."""
        if not self._by_window:
            nothing = [pa.nulls(rows.num_rows, field.type) for field in (CORRECTION, CORRECTION_OUTDATED)]
            return rows.append_column(CORRECTION, nothing[0]).append_column(CORRECTION_OUTDATED, nothing[1])
        windows = zip(*(manifest[name].to_pylist() for name in _WINDOW), strict=True)
        found = [self._by_window.get(window) for window in windows]
        pairs = list(zip(found, rows["caption"].to_pylist(), strict=True))
        decisions = [one and one.decision.value for one in found]
        outdated = [one and one.reviewed_caption != text for one, text in pairs]
        is_rewritten = pa.array([decision == Decision.REWRITE for decision in decisions])
        texts = pa.array([one and one.caption for one in found], pa.string())
        for name, value in {"caption": texts, **REWRITTEN}.items():
            field = rows.schema.field(name)
            present = value if isinstance(value, pa.Array) else pa.scalar(value, field.type)
            column = pc.if_else(is_rewritten, present, rows[name])
            rows = rows.set_column(rows.schema.get_field_index(name), field, column)
        return rows.append_column(CORRECTION, pa.array(decisions, CORRECTION.type)).append_column(
            CORRECTION_OUTDATED, pa.array(outdated, CORRECTION_OUTDATED.type)
        )


def _suggest(name: str, known: Sequence[str] | Mapping[str, object]) -> str:
    return _did_you_mean(get_close_matches(name, known, MAX_SUGGESTIONS)) or _remedy(known)


def _did_you_mean(names: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(names)}?" if names else ""


def _remedy(known: Sequence[str] | Mapping[str, object]) -> str:
    return f": use one of {', '.join(known)}"


def _first_lines(message: str) -> str:
    """DuckDB's message without the kind of error, the list of candidates, and the part of the query."""
    text = printable(message).partition("\nLINE ")[0].partition("\n\tCandidate")[0]
    return " ".join(re.sub(r"^[A-Za-z ]+ Error: ", "", text).split())
