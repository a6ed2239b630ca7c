from pathlib import Path

import pytest

from caption_assets.captioning.recipe_file import built_in
from caption_assets.checks.stored_tables import StoredShard, StoredTable, captions_of, mean_words
from caption_assets.store.root import Root
from caption_assets.store.tables import TableError, caption_schema, table_path
from tests.report.windows import PROMPTS, SHARD, captioned, failed, publish, window
from tests.stages import STAGE1, STAGE2

pytestmark = pytest.mark.fast

CAR, VAN = window("car.mp4"), window("van.mp4")


def test_stored_shard_reads_each_table_once(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path))
    publish(root, [CAR, VAN], [captioned(CAR, "A car."), failed(VAN)])
    shard = StoredShard(root, SHARD)
    assert len(shard.manifest) == 2
    stored = shard.table(STAGE1.name)
    root.remove_folder(f"clip_manifest/shard={SHARD}")
    root.remove_folder(f"{STAGE1.name}/shard={SHARD}")
    assert shard.manifest[0] == CAR
    assert shard.table(STAGE1.name) is shard.find(STAGE1.name) is stored
    assert [caption.words for caption in stored.captions] == [["a", "car"]]
    assert stored.file_metadata["prompt"] == PROMPTS[STAGE1.name]


def test_stored_shard_finds_no_table_that_was_not_made(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path))
    publish(root, [CAR], [captioned(CAR, "A car.")])
    shard = StoredShard(root, SHARD)
    assert shard.find(STAGE2.name) is None
    with pytest.raises(TableError, match=f"{table_path(STAGE2.name, SHARD)} does not exist: materialize"):
        shard.table(STAGE2.name)


def test_mean_words_ignores_rows_without_a_caption() -> None:
    rows = [captioned(CAR, "A red car, isn't it?"), captioned(VAN, "\u7ea2\u8272"), failed(VAN)]
    assert mean_words(captions_of(rows)) == 3.5
    assert mean_words([]) is None


def test_words_of_json_are_those_of_its_strings_and_choices_have_no_mean() -> None:
    attributes, alignment = (built_in("sample").stage(name) for name in ("attributes", "alignment"))
    fields = StoredTable.of(
        "attributes", caption_schema(attributes.columns), [captioned(CAR, '{"shape": "a Square", "size": 3}')]
    )
    assert [caption.words for caption in fields.captions] == [["a", "square"]]
    assert fields.mean_words == 2
    assert StoredTable.of("alignment", caption_schema(alignment.columns), [captioned(CAR, "yes")]).mean_words is None
