"""The dataset card: a description for readers, and the front matter with which ``datasets`` loads the dataset."""

from __future__ import annotations

import json

from huggingface_hub import DatasetCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from caption_assets.captioning.output import ChoiceOutput, JsonOutput, Output, TextOutput
from caption_assets.captioning.stages import Stage
from caption_assets.export.clip import ShardTables
from caption_assets.export.config import ExportConfig
from caption_assets.export.formats.layout import FormatLayout
from caption_assets.export.index import DATA, DATASET
from caption_assets.store.root import Root
from caption_assets.store.table_file import TableFile

CARD = f"{DATASET}/README.md"
TASK = "video-text-to-text"
"""The task's name on the Hub."""
_TEMPLATES = Environment(
    loader=PackageLoader("caption_assets.export", ""), undefined=StrictUndefined, keep_trailing_newline=True
)


def write_card(root: Root, tables: ShardTables, layout: FormatLayout, export: ExportConfig) -> None:
    """Publish the card. It contains no counts, so that shards can be exported concurrently."""
    root.write(CARD, card(tables, layout, export).encode())


def card(tables: ShardTables, layout: FormatLayout, export: ExportConfig) -> str:
    """The card, as Markdown with front matter in YAML."""
    return _TEMPLATES.get_template("card.md").render(
        front_matter=_front_matter(layout, export.license),
        layout=layout,
        clip_prompt=export.graph.clip_prompt,
        stages=[_stage(stage, file) for stage, file in zip(tables.stages, tables.captions, strict=True)],
    )


def _front_matter(layout: FormatLayout, license: str | None) -> str:
    files = {"split": "train", "path": f"{DATA}/*/{layout.pattern}"}
    features = {} if layout.features is None else {"features": layout.features}
    return str(
        DatasetCardData(
            license=license,
            task_categories=[TASK],
            configs=[{"config_name": "default", "data_files": [files]}],
            dataset_info={"config_name": "default", **features},
        ).to_yaml()
    )


def _stage(stage: Stage, file: TableFile) -> dict[str, str]:
    """The provenance of a stage's captions, from the file metadata of its table."""
    metadata = file.file_metadata
    recipe = json.loads(metadata.get("recipe", "{}"))
    lora = recipe.get("lora")
    return {
        "name": stage.name,
        "output": _describe(stage.output),
        "input": "" if stage.video else ", without the video",
        "adapter": f"`{lora[0]}`, revision `{lora[1]}`" if lora else "",
        "model": recipe.get("model", "unknown"),
        "revision": recipe.get("revision", "unknown"),
        "prompt": metadata.get("prompt", "unknown"),
    }


def _describe(output: Output) -> str:
    match output:
        case TextOutput():
            return "text"
        case JsonOutput():
            return "JSON"
        case ChoiceOutput():
            choices = ", ".join(f"`{choice}`" for choice in output.choices)
            return f"one of {choices}" + (f"; the score is the probability of `{output.score}`" if output.score else "")
