from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path

import duckdb
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.store.caption_columns import CaptionColumns
from caption_assets.store.root import Root
from caption_assets.store.tables import (
    CLIP_MANIFEST,
    ROW_GROUP,
    SAMPLING,
    SCHEMA_VERSION,
    CaptionRow,
    ManifestRow,
    PreviousText,
    Status,
    TableError,
    caption_schema,
    publish_captions,
    publish_manifest,
    read_captions,
    read_manifest,
    schema_of,
    stored_shards,
    window_id,
)
from tests.stages import STAGE1, STAGE2

pytestmark = pytest.mark.fast

MANIFEST = [
    ManifestRow("a.mp4", 0, "a0", "tag", 10, Status.OK, start_frame=0, end_frame=8, start_seconds=0.0, end_seconds=0.3),
    ManifestRow("b.mp4", None, "b", "tag", 0, Status.FAILED, error_kind="not_a_video", error="empty"),
]
CAPTIONS = [
    CaptionRow("a.mp4", 0, "a0", 0.0, 0.3, Status.OK, caption='He said: "\\d {x}"', frame_indices=(0, 4), attempts=1),
    CaptionRow("b.mp4", None, "b", None, None, Status.FAILED, error_kind="not_a_video", error="empty"),
]
KEYS = [row.key for row in MANIFEST]


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root.open(str(tmp_path))


def test_manifest_survives_a_round_trip(root: Root) -> None:
    publish_manifest(root, "s", MANIFEST, {})
    assert read_manifest(root, "s") == MANIFEST


def test_captions_survive_a_round_trip(root: Root) -> None:
    publish_captions(root, STAGE2.name, "s", CAPTIONS, KEYS, {})
    as_read = [replace(row, flags=[], reductions=[]) for row in CAPTIONS]  # a list column's values are lists
    as_read[0] = replace(as_read[0], frame_indices=[0, 4])
    assert read_captions(root, STAGE2.name, "s") == as_read


def test_previous_text_survives_a_round_trip(root: Root) -> None:
    previous = PreviousText("A car.", ["cut_off"], "model", sampling=dict.fromkeys(SAMPLING.names), fingerprint="f")
    rows = [replace(CAPTIONS[0], previous=previous), CAPTIONS[1]]
    publish_captions(root, STAGE2.name, "s", rows, KEYS, {})
    assert [row.previous for row in read_captions(root, STAGE2.name, "s")] == [previous, None]


def test_previous_text_is_a_struct_for_readers(root: Root, tmp_path: Path) -> None:
    rows = [replace(CAPTIONS[0], previous=PreviousText("A car.", score=0.5)), CAPTIONS[1]]
    path = tmp_path / publish_captions(root, STAGE2.name, "s", rows, KEYS, {})
    query = f"SELECT previous.caption, previous.score, previous IS NULL FROM '{path}'"
    assert duckdb.connect().execute(query).fetchall() == [("A car.", 0.5, False), (None, None, True)]


@pytest.mark.parametrize(
    "rows",
    [CAPTIONS[:1], [*CAPTIONS, CAPTIONS[0]], CAPTIONS[::-1], [CAPTIONS[0], CAPTIONS[0]]],
    ids=["missing", "too many", "out of order", "twice"],
)
def test_rows_that_differ_from_the_manifests_are_not_published(root: Root, rows: Sequence[CaptionRow]) -> None:
    with pytest.raises(TableError, match="nothing was published"):
        publish_captions(root, STAGE1.name, "s", rows, KEYS, {})
    assert not root.exists("stage1_captions")


def test_manifest_with_a_duplicate_window_is_an_error(root: Root) -> None:
    with pytest.raises(TableError, match="twice"):
        publish_manifest(root, "s", [MANIFEST[0], MANIFEST[0]], {})


def test_manifest_is_written_as_a_stream(root: Root, tmp_path: Path) -> None:
    many = [replace(MANIFEST[0], clip_key=f"{index:05d}.mp4") for index in range(2 * ROW_GROUP + 1)]
    path = publish_manifest(root, "s", iter(many), {})
    assert pq.ParquetFile(tmp_path / path).num_row_groups == 3
    assert read_manifest(root, "s") == many


def test_manifest_may_be_empty(root: Root) -> None:
    publish_manifest(root, "s", iter([]), {})
    assert read_manifest(root, "s") == []


def test_failure_in_the_rows_publishes_no_manifest(root: Root) -> None:
    publish_manifest(root, "s", MANIFEST, {})

    def rows() -> Iterator[ManifestRow]:
        yield replace(MANIFEST[0], clip_key="new.mp4")
        raise OSError("the store is gone")

    with pytest.raises(OSError, match="the store is gone"):
        publish_manifest(root, "s", rows(), {})
    assert read_manifest(root, "s") == MANIFEST


def test_manifest_of_another_version_is_an_error(root: Root, tmp_path: Path) -> None:
    path = tmp_path / publish_manifest(root, "s", MANIFEST, {})
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"schema_version": "1"}), path)
    with pytest.raises(TableError, match=r"schema version 1, .* materialize clip_manifest for shard 's' again"):
        read_manifest(root, "s")


@pytest.mark.parametrize("table", [STAGE1.name, STAGE2.name])
def test_missing_table_is_an_error_with_a_remedy(root: Root, table: str) -> None:
    with pytest.raises(TableError, match=f"materialize {table} for shard 's' first"):
        read_captions(root, table, "s")


def test_tables_of_all_shards_are_one_dataset(root: Root, tmp_path: Path) -> None:
    for shard in ("one", "two"):
        publish_captions(root, STAGE1.name, shard, CAPTIONS, KEYS, {})
    dataset = ds.dataset(tmp_path / "stage1_captions").to_table().to_pylist()
    assert sorted((row["shard"], row["clip_key"]) for row in dataset) == [
        ("one", "a.mp4"),
        ("one", "b.mp4"),
        ("two", "a.mp4"),
        ("two", "b.mp4"),
    ]


def test_file_metadata_contains_the_schema_version(root: Root, tmp_path: Path) -> None:
    publish_captions(root, STAGE1.name, "s", CAPTIONS, KEYS, {"recipe_version": "abc"})
    metadata = pq.read_schema(tmp_path / "stage1_captions/shard=s/captions.parquet").metadata
    assert metadata[b"schema_version"] == SCHEMA_VERSION.encode()
    assert metadata[b"recipe_version"] == b"abc"


def test_every_field_of_a_row_has_a_column() -> None:
    assert [field.name for field in fields(ManifestRow)] == schema_of(CLIP_MANIFEST).names
    choices = CaptionColumns(("stage1_captions",), ("yes", "no"))
    assert {field.name for field in fields(CaptionRow)} == {*caption_schema(choices).names} - {"choice", "probability"}


@given(st.lists(st.tuples(st.text(), st.none() | st.integers(0, 1000), st.text(max_size=8)), unique=True, max_size=40))
def test_window_ids_are_unique(windows: list[tuple[str, int | None, str]]) -> None:
    assert len({window_id(*window) for window in windows}) == len(windows)


def test_shards_with_a_table_are_listed(root: Root, tmp_path: Path) -> None:
    for shard in ("a", "b.c", "=d"):
        publish_manifest(root, shard, [], {})
    root.write("clip_manifest/shard=e/notes.txt", b"x")
    root.write("clip_manifest/shard=f/manifest.parquet", b"")
    root.write("clip_manifest/shard=g/old/manifest.parquet", b"x")
    root.write("clip_manifest/.shard=h.tmp", b"x")
    assert stored_shards(root, CLIP_MANIFEST) == {"a", "b.c", "=d"}
    assert stored_shards(root, STAGE1.name) == frozenset()


def test_captions_of_the_previous_version_are_read_without_new_columns(root: Root, tmp_path: Path) -> None:
    rows = [replace(row, frames_replaced=1, engine_settings="vLLM 1") for row in CAPTIONS]
    path = tmp_path / publish_captions(root, STAGE1.name, "s", rows, KEYS, {})
    table = pq.read_table(path).drop_columns(["frames_replaced", "frames_padded", "engine_settings"])
    pq.write_table(table.replace_schema_metadata({"schema_version": "2"}), path)
    read = read_captions(root, STAGE1.name, "s")
    assert [row.caption for row in read] == [row.caption for row in CAPTIONS]
    assert {(row.frames_replaced, row.engine_settings) for row in read} == {(None, None)}
