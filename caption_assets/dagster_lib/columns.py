"""The columns of the tables, as the UI shows them."""

from __future__ import annotations

import dagster as dg
from docstring_parser import parse_from_object

from caption_assets.store.tables import CLIP_MANIFEST, CaptionRow, ManifestRow, schema_of

ROW_COUNT = "dagster/row_count"
"""Name by which Dagster knows the number of rows of what was materialized."""

# Parsed at import. In a thread the garbage collector may close another thread's SQLite connections meanwhile, which
# fails, and Python 3.11's parser with it ("AST constructor recursion depth mismatch").
_DESCRIBED = {
    kind: {field.arg_name: field.description for field in parse_from_object(kind).params}
    for kind in (ManifestRow, CaptionRow)
}


def column_metadata(table: str) -> dict[str, dg.MetadataValue]:
    """Columns of a table, as metadata of its asset: on each materialization they would be 7 KB of event log."""
    return {"dagster/column_schema": dg.MetadataValue.table_schema(_columns(table))}


def _columns(table: str) -> dg.TableSchema:
    """Types are Arrow's; descriptions are the docstrings of the fields of the rows."""
    described = _DESCRIBED[ManifestRow if table == CLIP_MANIFEST else CaptionRow]
    return dg.TableSchema(
        [
            dg.TableColumn(
                field.name,
                str(field.type),
                description=described.get(field.name),
                constraints=dg.TableColumnConstraints(nullable=field.nullable),
            )
            for field in schema_of(table)
        ]
    )
