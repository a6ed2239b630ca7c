import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard

from caption_assets.export.columns import CLIP_COLUMNS, WINDOW_COLUMNS, stage_columns
from caption_assets.store.root import Root
from caption_assets.store.tables import publish_captions
from tests.export.shards import LINES, TARS, card, clip, export, publish_captioned
from tests.report.windows import FOUR, SHARD, captioned, publish_four
from tests.stages import STAGE1, STAGE2, STAGES

pytestmark = pytest.mark.fast


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """A root with one captioned shard."""
    root = Root.open(str(tmp_path))
    publish_captioned(root, clip(root, "car.mp4", b"a car"))
    return root


def test_card_names_the_files_and_the_license_if_set(root: Root) -> None:
    export(root)
    data = DatasetCard(card(root)).data
    assert data["configs"] == [{"config_name": "default", "data_files": [{"split": "train", "path": "data/*/*.tar"}]}]
    assert data.get("license") is None
    export(root, replace(LINES, license="cc-by-4.0"))
    data = DatasetCard(card(root)).data
    assert data["configs"][0]["data_files"][0]["path"] == "data/*/*.jsonl"
    assert data["license"] == "cc-by-4.0"


@pytest.mark.parametrize("how", [TARS, LINES])
def test_card_describes_every_column(root: Root, how: object) -> None:
    export(root, how)  # type: ignore[arg-type]
    stages = (column for columns in stage_columns(STAGES) for column in columns.columns.values())
    for column in (*CLIP_COLUMNS, *WINDOW_COLUMNS, *stages):
        assert f"| `{column.name}` | " in card(root)


def test_card_contains_the_captions_provenance(root: Root) -> None:
    row = clip(root, "car.mp4", b"a car")[0]
    recipe = json.dumps({"model": "org/model", "revision": "c0ffee"})
    for stage in (STAGE1, STAGE2):
        metadata = {"prompt": f"Say what you see.\n```\n# {stage.name}", "recipe": recipe}
        publish_captions(root, stage.name, SHARD, [captioned(row, "A car.")], [row.key], metadata, stage.columns)
    export(root)
    assert "Stage `stage2_captions` (text): model `org/model`, revision `c0ffee`" in card(root)
    assert "    Say what you see.\n    ```\n    # stage1_captions\n" in card(root)


def test_card_names_the_adapter(root: Root) -> None:
    row = clip(root, "car.mp4", b"a car")[0]
    recipe = json.dumps({"model": "org/model", "revision": "c0ffee", "lora": ["org/adapter", "ace"]})
    for stage in (STAGE1, STAGE2):
        adapted = replace(captioned(row, "A car."), lora="org/adapter", lora_revision="ace")
        publish_captions(root, stage.name, SHARD, [adapted], [row.key], {"recipe": recipe}, stage.columns)
    export(root)
    assert "`org/model`, revision `c0ffee`, with the LoRA adapter `org/adapter`, revision `ace`. Its" in card(root)


def test_card_is_independent_of_the_export_order(root: Root) -> None:
    export(root)
    before = card(root)
    publish_captioned(root, clip(root, "van.mp4", b"a van"), shard="other")
    export(root, shard="other")
    assert card(root) == before


def test_card_lists_all_stages_with_their_outputs(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path))
    publish_four(root, clip(root, "car.mp4", b"a car"))
    export(root, replace(LINES, graph=FOUR))
    text = card(root)
    assert re.findall(r"Stage `(\w+)` \((.*)\): model", text) == [
        ("short", "text"),
        ("dense_captions", "text"),
        ("attributes", "JSON"),
        ("alignment", "one of `yes`, `no`; the score is the probability of `yes`"),
    ]
    assert text.count("(or the clip's `prompt`)") == 1
    for name in ("short_caption", "dense_caption", "attributes_fields", "alignment_choice", "alignment_score"):
        assert f"| `{name}` | " in text
