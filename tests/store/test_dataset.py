"""Tables of several shards, read by ``read_table`` and by the readers that the docs name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caption_assets.store.caption_columns import CaptionColumns
from caption_assets.store.dataset import read_table
from caption_assets.store.root import Root
from caption_assets.store.tables import (
    CLIP_MANIFEST,
    CaptionRow,
    ManifestRow,
    Status,
    TableError,
    publish_captions,
    publish_manifest,
    published_schema,
    read_captions,
    table_path,
)
from tests.damage import invert_pages
from tests.stages import STAGE1, STAGE2

pytestmark = pytest.mark.fast

FIXTURES = Path(__file__).parents[1] / "fixtures"
CLIP = ManifestRow("a.mp4", 0, "a0", "tag", 10, Status.OK, start_frame=0, end_frame=8, start_seconds=0.0)
CAPTION = CaptionRow("a.mp4", 0, "a0", 0.0, 0.3, Status.OK, caption="A car.")


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root.open(str(tmp_path / "root"))


def publish(root: Root, shard: str, caption: str = "A car.", columns: CaptionColumns = STAGE1.columns) -> Path:
    publish_manifest(root, shard, [CLIP], {})
    rows = [replace(CAPTION, caption=caption)]
    return Path(root.full(publish_captions(root, STAGE1.name, shard, rows, [CLIP.key], {}, columns)))


def remove_shard_column(path: Path) -> None:
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns("shard"), path)


def test_shard_is_the_first_column_of_each_file(root: Root) -> None:
    publish(root, "00000")
    for table in (CLIP_MANIFEST, STAGE1.name):
        found = pq.ParquetFile(root.full(table_path(table, "00000"))).read()
        assert found.schema.field(0) == pa.field("shard", pa.string(), nullable=False)
        assert found["shard"].to_pylist() == ["00000"]


def test_table_of_all_shards_is_read_in_the_order_of_their_names(root: Root) -> None:
    for shard in ("b", "00001", "00000"):
        publish(root, shard, f"A car of {shard}.")
    found = read_table(root, STAGE1.name, columns=["caption", "shard"])
    assert found.to_pylist() == [{"caption": f"A car of {name}.", "shard": name} for name in ("00000", "00001", "b")]
    assert read_table(root.url, CLIP_MANIFEST).schema.equals(published_schema(CLIP_MANIFEST))


def test_named_shards_are_read_in_the_given_order(root: Root) -> None:
    for shard in ("a", "b", "c"):
        publish(root, shard)
    assert read_table(Path(root.path), STAGE1.name, ["c", "a", "c"])["shard"].to_pylist() == ["c", "a"]
    assert read_table(root, STAGE1.name, "b")["shard"].to_pylist() == ["b"]
    assert read_table(root, STAGE1.name, []).num_rows == 0


def test_files_without_the_shard_are_read_alike(root: Root) -> None:
    publish(root, "a")
    new = read_table(root, STAGE1.name)
    remove_shard_column(Path(root.full(table_path(STAGE1.name, "a"))))
    assert read_table(root, STAGE1.name).equals(new)
    assert read_table(root, STAGE1.name, columns=["shard"]).to_pylist() == [{"shard": "a"}]
    assert [row.caption for row in read_captions(root, STAGE1.name, "a")] == ["A car."]


@pytest.mark.parametrize("name", ["root_schema_version_2", "root_before_window_job"])
@pytest.mark.parametrize("table", [CLIP_MANIFEST, STAGE1.name, STAGE2.name])
def test_files_of_earlier_releases_are_read_beside_new_ones(root: Root, name: str, table: str) -> None:
    old = FIXTURES / name / table_path(table, "shard")
    target = Path(root.full(table_path(table, "00000")))
    target.parent.mkdir(parents=True)
    shutil.copy(old, target)
    if table == CLIP_MANIFEST:
        publish_manifest(root, "00001", [CLIP], {})
    else:
        columns = (STAGE1 if table == STAGE1.name else STAGE2).columns
        publish_captions(root, table, "00001", [CAPTION], [CLIP.key], {}, columns)
    rows = read_table(root, table).to_pylist()
    expected = pq.ParquetFile(old).read().to_pylist()
    assert [row["shard"] for row in rows] == ["00000"] * len(expected) + ["00001"]
    assert [row["clip_key"] for row in rows[:-1]] == [row["clip_key"] for row in expected]
    if table == STAGE2.name:
        upstream = [row["upstream_fingerprints"] for row in rows[:-1]]
        former = [row["stage1_fingerprint"] for row in expected]
        assert upstream == [value and {STAGE1.name: value} for value in former]
        assert "stage1_fingerprint" not in rows[0]


def test_columns_of_changed_stages_are_read_together(root: Root) -> None:
    publish(root, "a")
    rows = [replace(CAPTION, caption="yes", probabilities={"yes": 0.9, "no": 0.1})]
    publish_captions(root, STAGE1.name, "b", rows, [CLIP.key], {}, CaptionColumns(choices=("yes", "no")))
    assert read_table(root, STAGE1.name)["choice"].to_pylist() == [None, "yes"]


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (
            lambda root: read_table(root, "captions"),
            r"no table 'captions' \(its tables: clip_manifest, stage1_captions",
        ),
        (lambda root: read_table(root, STAGE1.name, ["x"]), "materialize stage1_captions for shard 'x' first"),
        (lambda root: read_table(root, STAGE1.name, columns=["text"]), "stage1_captions has no column 'text'"),
    ],
)
def test_what_does_not_exist_is_an_error(root: Root, read: Callable[[Root], pa.Table], message: str) -> None:
    publish(root, "a")
    with pytest.raises(TableError, match=message):
        read(root)


def test_damaged_file_is_an_error(root: Root) -> None:
    invert_pages(publish(root, "a"))
    with pytest.raises(TableError, match="is damaged"):
        read_table(root, STAGE1.name)
