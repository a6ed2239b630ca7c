from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.store.root import Root
from caption_assets.store.tables import (
    SCHEMAS,
    CaptionRow,
    ManifestRow,
    Status,
    Table,
    TableError,
    publish_captions,
    publish_manifest,
    read_captions,
    read_manifest,
    window_id,
)

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


def test_a_manifest_is_read_as_it_was_published(root: Root) -> None:
    publish_manifest(root, "s", MANIFEST, {})
    assert read_manifest(root, "s") == MANIFEST


def test_captions_are_read_as_they_were_published(root: Root) -> None:
    publish_captions(root, Table.STAGE2, "s", CAPTIONS, KEYS, {})
    as_read = [replace(row, flags=[], reductions=[]) for row in CAPTIONS]  # a list column's values are lists
    as_read[0] = replace(as_read[0], frame_indices=[0, 4])
    assert read_captions(root, Table.STAGE2, "s") == as_read


@pytest.mark.parametrize(
    "rows",
    [CAPTIONS[:1], [*CAPTIONS, CAPTIONS[0]], CAPTIONS[::-1], [CAPTIONS[0], CAPTIONS[0]]],
    ids=["missing", "too many", "out of order", "twice"],
)
def test_rows_that_are_not_the_manifests_are_not_published(root: Root, rows: Sequence[CaptionRow]) -> None:
    with pytest.raises(TableError, match="nothing was published"):
        publish_captions(root, Table.STAGE1, "s", rows, KEYS, {})
    assert not root.exists("stage1_captions")


def test_a_manifest_does_not_hold_a_window_twice(root: Root) -> None:
    with pytest.raises(TableError, match="twice"):
        publish_manifest(root, "s", [MANIFEST[0], MANIFEST[0]], {})


@pytest.mark.parametrize("table", [Table.STAGE1, Table.STAGE2])
def test_a_missing_table_says_what_to_materialize(root: Root, table: Table) -> None:
    with pytest.raises(TableError, match=f"materialize {table} for shard 's' first"):
        read_captions(root, table, "s")


def test_tables_read_as_one_hive_partitioned_dataset(root: Root, tmp_path: Path) -> None:
    for shard in ("one", "two"):
        publish_captions(root, Table.STAGE1, shard, CAPTIONS, KEYS, {})
    dataset = ds.dataset(tmp_path / "stage1_captions", partitioning="hive").to_table().to_pylist()
    assert sorted((row["shard"], row["clip_key"]) for row in dataset) == [
        ("one", "a.mp4"),
        ("one", "b.mp4"),
        ("two", "a.mp4"),
        ("two", "b.mp4"),
    ]


def test_file_metadata_names_the_schema_version(root: Root, tmp_path: Path) -> None:
    publish_captions(root, Table.STAGE1, "s", CAPTIONS, KEYS, {"recipe_version": "abc"})
    metadata = pq.read_schema(tmp_path / "stage1_captions/shard=s/captions.parquet").metadata
    assert metadata[b"schema_version"] == b"1"
    assert metadata[b"recipe_version"] == b"abc"


def test_every_field_of_a_row_has_a_column() -> None:
    assert [field.name for field in fields(ManifestRow)] == SCHEMAS[Table.MANIFEST].names
    assert [field.name for field in fields(CaptionRow)] == SCHEMAS[Table.STAGE2].names
    assert SCHEMAS[Table.STAGE2].names == [*SCHEMAS[Table.STAGE1].names, "stage1_fingerprint"]


@given(st.lists(st.tuples(st.text(), st.none() | st.integers(0, 1000), st.text(max_size=8)), unique=True, max_size=40))
def test_window_ids_tell_windows_apart(windows: list[tuple[str, int | None, str]]) -> None:
    assert len({window_id(*window) for window in windows}) == len(windows)
