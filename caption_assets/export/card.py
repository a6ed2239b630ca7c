"""The dataset card: a description for readers, and the front matter with which ``datasets`` loads the dataset."""

from __future__ import annotations

import json
from collections.abc import Mapping

from huggingface_hub import DatasetCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from caption_assets.export.clip import ShardTables
from caption_assets.export.formats import FormatLayout
from caption_assets.export.index import DATA, DATASET
from caption_assets.store.root import Root

CARD = f"{DATASET}/README.md"
TASK = "video-text-to-text"
"""The task's name on the Hub."""
_TEMPLATES = Environment(
    loader=PackageLoader("caption_assets.export", ""), undefined=StrictUndefined, keep_trailing_newline=True
)


def write_card(root: Root, tables: ShardTables, layout: FormatLayout, license: str | None) -> None:
    """Publish the card. It contains no counts, so that shards can be exported concurrently."""
    root.write(CARD, card(tables, layout, license).encode())


def card(tables: ShardTables, layout: FormatLayout, license: str | None) -> str:
    """The card, as Markdown with front matter in YAML."""
    return _TEMPLATES.get_template("card.md").render(
        front_matter=_front_matter(layout, license),
        layout=layout,
        stages=[_stage(file.file_metadata) for file in (tables.stage1, tables.stage2)],
    )


def _front_matter(layout: FormatLayout, license: str | None) -> str:
    files = {"split": "train", "path": f"{DATA}/*/*.{layout.suffix}"}
    return str(
        DatasetCardData(
            license=license,
            task_categories=[TASK],
            configs=[{"config_name": "default", "data_files": [files]}],
            dataset_info={"config_name": "default", "features": layout.features},
        ).to_yaml()
    )


def _stage(metadata: Mapping[str, str]) -> dict[str, str]:
    """The provenance of a table's captions, from its file metadata."""
    recipe = json.loads(metadata.get("recipe", "{}"))
    lora = recipe.get("lora")
    return {
        "adapter": f"`{lora[0]}`, revision `{lora[1]}`" if lora else "",
        "model": recipe.get("model", "unknown"),
        "revision": recipe.get("revision", "unknown"),
        "prompt": metadata.get("prompt", "unknown"),
    }
