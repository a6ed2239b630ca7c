"""The dataset's card: what a person reads of it, and in its front matter how ``datasets`` loads it."""

from __future__ import annotations

import json
from collections.abc import Mapping

from huggingface_hub import DatasetCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from caption_assets.export.clip import ShardTables
from caption_assets.export.format import Form
from caption_assets.export.index import DATA, DATASET
from caption_assets.store.root import Root

CARD = f"{DATASET}/README.md"
TASK = "video-text-to-text"
"""One of the Hub's names of tasks."""
_TEMPLATES = Environment(
    loader=PackageLoader("caption_assets.export", ""), undefined=StrictUndefined, keep_trailing_newline=True
)


def write_card(root: Root, tables: ShardTables, form: Form, licence: str | None) -> None:
    """Publish the card. It counts nothing, so that shards may be exported side by side."""
    root.write(CARD, card(tables, form, licence).encode())


def card(tables: ShardTables, form: Form, licence: str | None) -> str:
    """The card, as Markdown with front matter in YAML."""
    return _TEMPLATES.get_template("card.md").render(
        front_matter=_front_matter(form, licence),
        form=form,
        stages=[_stage(file.file_metadata) for file in (tables.stage1, tables.stage2)],
    )


def _front_matter(form: Form, licence: str | None) -> str:
    files = {"split": "train", "path": f"{DATA}/*/*.{form.suffix}"}
    return str(
        DatasetCardData(
            license=licence,
            task_categories=[TASK],
            configs=[{"config_name": "default", "data_files": [files]}],
            dataset_info={"config_name": "default", "features": form.features},
        ).to_yaml()
    )


def _stage(facts: Mapping[str, str]) -> dict[str, str]:
    """How the captions of a table were made, from what was published with it."""
    recipe = json.loads(facts.get("recipe", "{}"))
    lora = recipe.get("lora")
    return {
        "adapter": f"`{lora[0]}`, revision `{lora[1]}`" if lora else "",
        "model": recipe.get("model", "unknown"),
        "revision": recipe.get("revision", "unknown"),
        "prompt": facts.get("prompt", "unknown"),
    }
