"""Small tables for the UI."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import dagster as dg

CELL_CHARACTERS = 200
"""Of a long text in a table: Dagster keeps a copy of it for each materialization."""


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> dg.MarkdownMetadataValue:
    """A Markdown table as metadata. Cells may hold any text: what would break the table or be HTML is escaped."""
    lines = [header, ["---"] * len(header), *([_cell(text) for text in row] for row in rows)]
    return dg.MetadataValue.md("\n".join(f"| {' | '.join(line)} |" for line in lines))


def shortened(text: str) -> str:
    """A text that is not too long for a cell: the gallery has it whole."""
    return text if len(text) <= CELL_CHARACTERS else f"{text[: CELL_CHARACTERS - 1]}\N{HORIZONTAL ELLIPSIS}"


def _cell(text: str) -> str:
    for special, plain in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("\n", " ")):
        text = text.replace(special, plain)
    return text
