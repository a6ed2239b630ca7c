import csv
import json
import sqlite3
import tarfile
from dataclasses import replace
from io import BytesIO, StringIO
from pathlib import Path

import pytest

from caption_assets.export.config import ExportConfig, Format
from caption_assets.export.index import DATASET
from caption_assets.export.merged import merge_dataset
from caption_assets.store.root import Root
from tests.export.shards import LINES, TARS, clip, export, publish_captioned

pytestmark = pytest.mark.fast

CSV = replace(LINES, format=Format.CSV)
ENERGON = replace(TARS, format=Format.ENERGON)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """Two captioned shards, of three windows and one."""
    root = Root.open(str(tmp_path))
    publish_captioned(root, clip(root, "car.mp4", b"a car", windows=2), clip(root, "van.mp4", b"a van"), shard="one")
    publish_captioned(root, clip(root, "bus.mp4", b"a bus"), shard="two")
    return root


def export_both(root: Root, how: ExportConfig) -> None:
    for shard in ("one", "two"):
        export(root, how, shard)


@pytest.mark.parametrize("file_bytes", [1, 1 << 30])
@pytest.mark.parametrize("how", [LINES, CSV])
def test_merged_file_has_the_lines_of_all_shards(root: Root, how: ExportConfig, file_bytes: int) -> None:
    how = replace(how, file_bytes=file_bytes)
    export_both(root, how)
    merged = merge_dataset(root, how)
    assert merged is not None
    assert (merged.shards, merged.samples, merged.others) == (2, 4, ())
    text = root.read(merged.path).decode()
    found = list(csv.DictReader(StringIO(text))) if how.format is Format.CSV else map(json.loads, text.splitlines())
    assert [(row["shard"], row["clip_key"], int(row["window_index"])) for row in found] == [
        ("one", "car.mp4", 0),
        ("one", "car.mp4", 1),
        ("one", "van.mp4", 0),
        ("two", "bus.mp4", 0),
    ]


def test_shards_of_another_form_are_not_merged(root: Root) -> None:
    export_both(root, CSV)
    other = replace(CSV, columns={"text": "caption"})
    export(root, other, "two")
    merged = merge_dataset(root, other)
    assert merged is not None
    assert (merged.samples, merged.others) == (1, ("one",))
    assert root.read(merged.path).splitlines()[0] == b"text"


def test_shards_with_the_same_columns_in_another_order_are_not_merged(root: Root) -> None:
    ordered = replace(CSV, columns={"text": "caption", "path": "uri"})
    reordered = replace(CSV, columns={"path": "uri", "text": "caption"})
    export_both(root, ordered)
    export(root, reordered, "two")
    merged = merge_dataset(root, reordered)
    assert merged is not None
    assert merged.others == ("one",)
    assert ordered.code_version != reordered.code_version


def test_another_format_removes_the_merged_file(root: Root) -> None:
    export_both(root, CSV)
    merge_dataset(root, CSV)
    export(root, LINES, "one")
    assert "dataset.csv" not in root.names(DATASET)
    export(root, ENERGON, "one")
    merge_dataset(root, ENERGON)
    assert ".nv-meta" in root.names(DATASET)
    export(root, TARS, "one")
    assert root.names(DATASET) == ["README.md", "data"]


def test_repeated_export_keeps_the_merged_file(root: Root) -> None:
    export_both(root, CSV)
    merge_dataset(root, CSV)
    export(root, CSV, "one")
    assert "dataset.csv" in root.names(DATASET)


def test_changed_shard_removes_the_merged_file_which_may_name_files_that_are_gone(root: Root) -> None:
    export_both(root, CSV)
    merge_dataset(root, CSV)
    publish_captioned(root, clip(root, "tram.mp4", b"a tram"), shard="new")
    export(root, CSV, "new")
    assert "dataset.csv" in root.names(DATASET)
    publish_captioned(root, clip(root, "bus.mp4", b"another bus"), shard="two")
    export(root, CSV, "two")
    assert "dataset.csv" not in root.names(DATASET)


def test_format_without_a_merged_file_has_none(root: Root) -> None:
    export_both(root, TARS)
    assert merge_dataset(root, TARS) is None


def test_index_of_energon_locates_every_member(root: Root) -> None:
    export_both(root, ENERGON)
    merged = merge_dataset(root, ENERGON)
    assert merged is not None
    meta = {name: root.read(f"{merged.path}/{name}") for name in root.names(merged.path)}
    tars = list(json.loads(meta[".info.json"])["shard_counts"].items())
    assert [count for _, count in tars] == [2, 1]
    with sqlite3.connect(root.address(f"{merged.path}/index.sqlite")) as index:
        rows = index.execute(
            "SELECT tar_file_id, sample_key, part_name, content_byte_offset, content_byte_size FROM sample_parts "
            "JOIN samples USING (tar_file_id, sample_index)"
        ).fetchall()
    index.close()
    assert len(rows) == 6
    for tar, key, part, offset, size in rows:
        data = root.read(f"{DATASET}/{tars[tar][0]}")
        with tarfile.open(fileobj=BytesIO(data)) as file:
            member = file.extractfile(f"{key}.{part}")
            assert member is not None
            assert member.read() == data[offset : offset + size]
