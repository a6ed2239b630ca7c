"""Metadata of a caption table's recipe: the stage's text and version, and what changed since the table it replaces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import dagster as dg

from caption_assets.captioning.open_shard import RECIPE_NAME, RECIPE_VERSION, STAGE_PROMPT
from caption_assets.dagster_lib.metadata import Metadata, markdown_table
from caption_assets.report.staleness import Change, recipe_changes, upstream_prompts

RECIPE_MEANINGS = {
    "recipe": "Name of the recipe",
    "recipe_version": "Code version of the stage: a hash of everything that its captions depend on except the clips",
    "prompt": "The stage's prompt; a clip's own prompt may replace it",
    "upstream_prompts": "Prompts of the stages that the stage needs, directly or through others",
    "changes": "What changed since the table that this one replaces, with the old and the new value",
}
"""Meaning of each metadata entry."""
_ENTRIES = {"recipe": RECIPE_NAME, "recipe_version": RECIPE_VERSION, "prompt": STAGE_PROMPT}
"""Keys of the file metadata, by metadata entry."""


def recipe_metadata(file_metadata: Mapping[str, str]) -> Metadata:
    """The recipe in a table's file metadata. Tables of earlier releases have no recipe name."""
    found: Metadata = {entry: file_metadata[key] for entry, key in _ENTRIES.items() if key in file_metadata}
    upstream = upstream_prompts(file_metadata)
    return {**found, "upstream_prompts": dg.MetadataValue.json(upstream)} if upstream else found


def recipe_changes_metadata(former: Mapping[str, str], present: Mapping[str, str]) -> Metadata:
    """The differences between the recipes of two tables, given their file metadata; empty if there are none."""
    changes = recipe_changes(former, present)
    return {"changes": changes_table(changes)} if changes else {}


def changes_table(changes: Iterable[Change]) -> dg.MarkdownMetadataValue:
    """A Markdown table of changes."""
    return markdown_table(["what", "old", "new"], ((change.what, change.old, change.new) for change in changes))
