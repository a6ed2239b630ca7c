"""The columns of the tables, as the UI shows them."""

from __future__ import annotations

import dagster as dg
from docstring_parser import parse_from_object

from caption_assets.store.tables import SCHEMAS, CaptionRow, ManifestRow, Table

# Parsed at import. In a thread the garbage collector may close another thread's SQLite connections meanwhile, which
# fails, and Python 3.11's parser with it ("AST constructor recursion depth mismatch").
_DESCRIBED = {
    kind: {field.arg_name: field.description for field in parse_from_object(kind).params}
    for kind in (ManifestRow, CaptionRow)
}


def table_facts(table: Table, rows: int) -> dict[str, dg.MetadataValue | int]:
    """Columns and number of rows of a shard's table, under the names by which Dagster knows them."""
    return {"dagster/column_schema": dg.MetadataValue.table_schema(_columns(table)), "dagster/row_count": rows}


def _columns(table: Table) -> dg.TableSchema:
    """Types are Arrow's; descriptions are the docstrings of the fields of the rows."""
    described = _DESCRIBED[ManifestRow if table is Table.MANIFEST else CaptionRow]
    return dg.TableSchema(
        [
            dg.TableColumn(
                field.name,
                str(field.type),
                description=described.get(field.name),
                constraints=dg.TableColumnConstraints(nullable=field.nullable),
            )
            for field in SCHEMAS[table]
        ]
    )
