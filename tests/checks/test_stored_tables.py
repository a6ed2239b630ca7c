from pathlib import Path

import pytest

from caption_assets.captioning.recipe_file import built_in
from caption_assets.checks.stored_tables import StoredShard, StoredTable, captions_of, mean_words
from caption_assets.store.root import Root
from caption_assets.store.tables import TableError, caption_schema, table_path
from tests.report.windows import FOUR, PROMPTS, SHARD, captioned, failed, publish, publish_four, window
from tests.stages import STAGE1, STAGE2

pytestmark = pytest.mark.fast

FIXTURES = Path(__file__).parents[1] / "fixtures"
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


def test_caption_tables_come_after_those_they_need(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path))
    publish_four(root, [CAR])
    root.write(table_path("foreign", SHARD), b"not a table of this project")
    tables = StoredShard(root, SHARD).caption_tables()
    assert sorted(tables) == sorted(stage.name for stage in FOUR.stages)
    names = list(tables)
    assert all(names.index(need) < names.index(stage.name) for stage in FOUR.stages for need in stage.needs)


def test_stored_tables_know_their_needs_and_outputs(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path))
    publish_four(root, [CAR])
    tables = StoredShard(root, SHARD).caption_tables()
    assert {name: table.needs for name, table in tables.items()} == {stage.name: stage.needs for stage in FOUR.stages}
    assert {name for name, table in tables.items() if table.is_text} == {"short", "dense_captions"}
    assert [name for name, table in tables.items() if table.is_json] == ["attributes"]
    assert [(name, table.score_choice) for name, table in tables.items() if table.has_choices] == [("alignment", "yes")]


@pytest.mark.parametrize("name", ["root_schema_version_2", "root_before_window_job"])
def test_tables_of_earlier_releases_name_their_need(name: str) -> None:
    stored = StoredShard(Root.open(str(FIXTURES / name)), "shard")
    tables = stored.caption_tables()
    assert {table: found.needs for table, found in tables.items()} == {STAGE1.name: (), STAGE2.name: (STAGE1.name,)}
    assert len(stored.manifest) == len(tables[STAGE1.name].rows) == 6
