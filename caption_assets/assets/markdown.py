"""Small tables and pictures for the UI."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence

import dagster as dg


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> dg.MarkdownMetadataValue:
    """A Markdown table as metadata. Cells may hold any text: what would break the table or be HTML is escaped."""
    lines = [header, ["---"] * len(header), *([_cell(text) for text in row] for row in rows)]
    return dg.MetadataValue.md("\n".join(f"| {' | '.join(line)} |" for line in lines))


def markdown_picture(png: bytes, words: str) -> dg.MarkdownMetadataValue:
    """A picture as metadata, within the text; ``words`` say what it shows to those who cannot see it."""
    return dg.MetadataValue.md(f"![{words}](data:image/png;base64,{b64encode(png).decode()})")


def _cell(text: str) -> str:
    for special, plain in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("\n", " ")):
        text = text.replace(special, plain)
    return text
