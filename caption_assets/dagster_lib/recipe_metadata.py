"""Metadata of a caption table's recipe: the stage's text and version, and what changed since the table it replaces."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import dagster as dg

from caption_assets.captioning.open_shard import RECIPE, RECIPE_NAME, RECIPE_VERSION, STAGE_PROMPT, UPSTREAM_PROMPTS
from caption_assets.dagster_lib.metadata import Metadata, markdown_table

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
_PROMPT_OF = "prompt of "


def recipe_metadata(file_metadata: Mapping[str, str]) -> Metadata:
    """The recipe in a table's file metadata. Tables of earlier releases have no recipe name."""
    found: Metadata = {entry: file_metadata[key] for entry, key in _ENTRIES.items() if key in file_metadata}
    upstream = _upstream_prompts(file_metadata)
    return {**found, "upstream_prompts": dg.MetadataValue.json(upstream)} if upstream else found


def recipe_changes(former: Mapping[str, str], present: Mapping[str, str]) -> Metadata:
    """The differences between the recipes of two tables, given their file metadata; empty if there are none."""
    if RECIPE not in former:
        return {}
    old, new = _values(former), _values(present)
    if UPSTREAM_PROMPTS not in former:  # a table of an earlier release
        new = {name: value for name, value in new.items() if not name.startswith(_PROMPT_OF)}
    names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    if not names:
        return {}
    # The hash of the prompt is compared, and its text is shown: earlier releases wrote the same slot in another way.
    old["prompt"], new["prompt"] = former.get(STAGE_PROMPT, ""), present[STAGE_PROMPT]
    rows = ([name, old.get(name, ""), new.get(name, "")] for name in names)
    return {"changes": markdown_table(["what", "old", "new"], rows)}


def _values(file_metadata: Mapping[str, str]) -> dict[str, str]:
    """The values of a recipe and the prompts of the stages upstream, by name."""
    values = dict(_flat(json.loads(file_metadata[RECIPE])))
    values |= {f"{_PROMPT_OF}{stage}": prompt for stage, prompt in _upstream_prompts(file_metadata).items()}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}


def _upstream_prompts(file_metadata: Mapping[str, str]) -> dict[str, str]:
    """The prompts of the stages upstream, by stage; empty for a table of an earlier release."""
    found: dict[str, str] = json.loads(file_metadata.get(UPSTREAM_PROMPTS, "{}"))
    return found


def _flat(values: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """The values, with those of a mapping one by one."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{part}", member) for part, member in value.items())
        else:
            yield name, value
