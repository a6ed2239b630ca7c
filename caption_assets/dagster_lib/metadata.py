"""Metadata of assets and materializations in the UI: table columns, Markdown tables and links."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import dagster as dg
from docstring_parser import parse_from_object

from caption_assets.report.gallery import web_address
from caption_assets.store.caption_columns import DERIVED, NO_COLUMNS, CaptionColumns
from caption_assets.store.root import Root
from caption_assets.store.tables import CLIP_MANIFEST, SHARD, CaptionRow, ManifestRow, published_schema

Metadata = dict[str, dg.MetadataValue | int | float | str]
ROW_COUNT = "dagster/row_count"
"""Dagster's own name for the number of rows of a materialization."""
ROWS_OK, ROWS_FAILED = "rows_ok", "rows_failed"
"""Names of the numbers of rows with and without a window or caption."""
ERROR = "error"
"""Name of the reason why a table could not be made, in an observation."""
MEAN_WORDS = "mean_words"
"""Name of the mean number of words of a caption table, which later shards are compared with."""
CELL_CHARACTERS = 200
"""Maximum length of a text in a Markdown table, in characters. Each materialization stores the table."""

# Parsed at import, not in a thread, where the garbage collector may close SQLite connections of another thread during
# the parse. That raises an error, and Python 3.11's parser fails ("AST constructor recursion depth mismatch").
_DESCRIPTIONS = {
    kind: {field.arg_name: field.description for field in parse_from_object(kind).params}
    for kind in (ManifestRow, CaptionRow)
}


def column_metadata(table: str, captions: CaptionColumns = NO_COLUMNS) -> dict[str, dg.MetadataValue]:
    """The columns of a table, as metadata of its asset. On each materialization they would add 7 KB to the event log.

    Types are those of Arrow; descriptions are the docstrings of the row's fields. ``captions`` are the columns of a
    stage's table that other stages' tables do not have.
    """
    row = ManifestRow if table == CLIP_MANIFEST else CaptionRow
    descriptions = {SHARD.name: "The shard's key", **_DESCRIPTIONS[row], **DERIVED}
    columns = [
        dg.TableColumn(
            field.name,
            str(field.type),
            description=descriptions.get(field.name),
            constraints=dg.TableColumnConstraints(nullable=field.nullable),
        )
        for field in published_schema(table, captions)
    ]
    return {"dagster/column_schema": dg.MetadataValue.table_schema(dg.TableSchema(columns))}


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> dg.MarkdownMetadataValue:
    """A Markdown table. Cells may contain any text: HTML, pipes and line breaks are escaped."""
    lines = [header, ["---"] * len(header), *([_cell(text) for text in row] for row in rows)]
    return dg.MetadataValue.md("\n".join(f"| {' | '.join(line)} |" for line in lines))


def count(metadata: Mapping[str, dg.MetadataValue], name: str) -> int:
    """The value of a count in an event's metadata; 0 if it is not one."""
    value = metadata.get(name)
    return value.value or 0 if isinstance(value, dg.IntMetadataValue) else 0


def meanings(entries: Mapping[str, str]) -> dict[str, dg.MetadataValue]:
    """The meaning of each entry of an asset's materializations, as metadata of the asset."""
    return {"metadata_entries": markdown_table(["entry", "meaning"], entries.items())}


def shortened(text: str) -> str:
    """A text cut to the maximum length of a cell."""
    return text if len(text) <= CELL_CHARACTERS else f"{text[: CELL_CHARACTERS - 1]}\N{HORIZONTAL ELLIPSIS}"


def link(root: Root, path: str, link_url: str | None) -> dg.MetadataValue:
    """A link to an object below the root, or the object's address if the root has no web address."""
    if link_url is None:
        return dg.MetadataValue.path(root.address(path))
    return dg.MetadataValue.url(web_address(link_url, path))


def _cell(text: str) -> str:
    for special, escaped in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("\n", " ")):
        text = text.replace(special, escaped)
    return text
