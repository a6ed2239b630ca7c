"""The MkDocs hook that generates the reference tables from the code.

A page marks the place of a table by a comment on its own line, such as ``<!-- generated: settings -->``.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import dagster as dg
from docstring_parser import parse_from_object

from caption_assets.captioning.recipe_file import BUILT_IN, built_in
from caption_assets.dagster_lib.metadata import column_metadata
from caption_assets.environment import PREFIX
from caption_assets.models.variants import UNPINNED, VARIANTS, Variant
from caption_assets.settings import Settings
from caption_assets.store.corrections import PUBLISHED_SCHEMA, Correction
from caption_assets.store.tables import CLIP_MANIFEST, SHARD

MARK = re.compile(r"^<!-- generated: ([a-z0-9_-]+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace each mark of a page by its table. MkDocs calls this for every page.

    Raises:
        KeyError: if a mark names an unknown table.
    """
    return MARK.sub(lambda mark: GENERATED[mark[1]](), markdown)


def settings_table() -> str:
    """Variable, default and description of each setting."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        rows.append((f"`{PREFIX}{name.upper()}`", _default(default), field.description or ""))
    return _table(("Variable", "Default", "Description"), rows)


def models_table() -> str:
    """Keys, Hub id, revision, license and sizes of each model. Sizes are computed from its number of parameters."""
    keys: dict[str, list[str]] = {}
    models: dict[str, Variant] = {}
    for key, variant in VARIANTS.items():
        if not variant.bundled:
            keys.setdefault(variant.hub_id, []).append(f"`{key}`")
            models[variant.hub_id] = variant
    header = ("Key", "Model", "Revision", "License of the weights", "10⁹ parameters", "Weights in BF16", "With FP8")
    return _table(header, ((", ".join(keys[hub_id]), *_model(models[hub_id])) for hub_id in models))


def recipes_table() -> str:
    """Name, stages and description of each built-in recipe."""
    graphs = (built_in(name) for name in BUILT_IN)
    rows = ((f"`{graph.name}`", ", ".join(stage.name for stage in graph.stages), graph.description) for graph in graphs)
    return _table(("Recipe", "Stages", "Description"), rows)


def columns_table(table: str) -> str:
    """Name, Arrow type and description of each column of a table, as Dagster's UI shows them."""
    schema = column_metadata(table)["dagster/column_schema"].value
    assert isinstance(schema, dg.TableSchema)
    rows = ((f"`{column.name}`", _type(column), _one_line(column.description)) for column in schema.columns)
    return _table(("Column", "Type", "Description"), rows)


def corrections_table() -> str:
    """Name, Arrow type and description of each column of the corrections."""
    descriptions = {field.arg_name: field.description for field in parse_from_object(Correction).params}
    descriptions |= {SHARD.name: "The shard's key", "decision": "`accept`, `reject`, `rewrite` or `undo`"}
    rows = (
        (
            f"`{field.name}`",
            f"{field.type}{'' if field.nullable else ', not null'}",
            _one_line(descriptions[field.name]),
        )
        for field in PUBLISHED_SCHEMA
    )
    return _table(("Column", "Type", "Description"), rows)


def command_line() -> str:
    """Commands with their arguments and options, as Typer documents them."""
    program = [sys.executable, "-m", "typer", "caption_assets.cli", "utils", "docs", "--name", "caption-assets"]
    text = subprocess.run(program, check=True, capture_output=True, text=True).stdout
    text = re.sub(r"^\*\*Commands\*\*:\n\n(\* .*\n)+", "", text, flags=re.MULTILINE)  # Typer cuts their descriptions
    return text.split("\n", 1)[1]  # the page has a heading of its own


def _default(value: object) -> str:
    if value is None:
        return ""
    return f"`{json.dumps(value) if isinstance(value, dict) else value}`"


def _model(model: Variant) -> tuple[str, ...]:
    """Cells of a model. The size with the default of ``CAPTION_FP8`` is in bold."""
    revision = "to be given" if model.revision == UNPINNED else f"`{model.revision[:7]}`"
    sizes = [f"{2 * model.parameters:.1f} GB", f"{2 * model.parameters - model.quantizable:.1f} GB"]
    sizes[model.fp8] = f"**{sizes[model.fp8]}**"
    return model.hub_id, revision, model.license, f"{model.parameters:.1f}", *sizes


def _type(column: dg.TableColumn) -> str:
    return column.type if column.constraints.nullable else f"{column.type}, not null"


def _one_line(text: str | None) -> str:
    return re.sub(r"``([^`]+)``", r"`\1`", " ".join((text or "").split()))


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows))


GENERATED: Mapping[str, Callable[[], str]] = {
    "settings": settings_table,
    "models": models_table,
    "command-line": command_line,
    "recipes": recipes_table,
    "corrections": corrections_table,
    **{table: partial(columns_table, table) for table in (CLIP_MANIFEST, "captions")},
}
