from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caption_assets.store.checkpoints import checkpoint_folder, read_checkpoints, remove_checkpoints, write_checkpoint
from caption_assets.store.failure import StoreError
from caption_assets.store.root import Root
from caption_assets.store.tables import CaptionRow, Status, schema_of
from tests.stages import STAGE1, STAGE2

pytestmark = pytest.mark.fast


def row(name: str, **values: object) -> CaptionRow:
    return CaptionRow(name, 0, f"id of {name}", 0.0, 1.0, Status.OK, caption=f"{name} moves", **values)  # type: ignore[arg-type]


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root.open(str(tmp_path))


def test_checkpoints_are_read_in_write_order(root: Root) -> None:
    one, two, three = row("one", frame_indices=[0, 2]), row("two"), row("three")
    write_checkpoint(root, "a", 2, 0, {STAGE1.name: [three]}, {})
    write_checkpoint(root, "a", 1, 0, {STAGE1.name: [one], STAGE2.name: []}, {})
    write_checkpoint(root, "a", 1, 1, {STAGE1.name: [two], STAGE2.name: [three]}, {})
    read = [(part.table, found.clip_key) for part in read_checkpoints(root, "a") for found in part.rows]
    assert read == [
        (STAGE1.name, "one"),
        (STAGE1.name, "two"),
        (STAGE2.name, "three"),
        (STAGE1.name, "three"),
    ]
    assert list(read_checkpoints(root, "another")) == []


def test_checkpointed_rows_survive_a_round_trip(root: Root) -> None:
    kept = row("one", frame_indices=[0, 2], flags=["too_short"], reductions=[], attempts=3)
    kept = replace(kept, upstream_fingerprints={STAGE1.name: "f"})
    columns = {STAGE2.name: STAGE2.columns}
    write_checkpoint(root, "a", 1, 0, {STAGE2.name: [kept]}, {"quality_rules": "2"}, columns)
    [read] = read_checkpoints(root, "a")
    assert (read.table, read.rows, read.metadata["quality_rules"]) == (STAGE2.name, [kept], "2")


def test_removal_keeps_checkpoints_of_later_epochs(root: Root) -> None:
    for epoch in (1, 2, 3):
        write_checkpoint(root, "a", epoch, 0, {STAGE1.name: [row(f"of {epoch}")]}, {})
    remove_checkpoints(root, "a", 2, [STAGE1.name])
    assert [found.clip_key for part in read_checkpoints(root, "a") for found in part.rows] == ["of 3"]


def test_removal_keeps_checkpoints_of_other_tables(root: Root) -> None:
    write_checkpoint(root, "a", 1, 0, {STAGE1.name: [row("one")], STAGE2.name: [row("two")]}, {})
    remove_checkpoints(root, "a", 1, [STAGE1.name])
    assert [part.table for part in read_checkpoints(root, "a")] == [STAGE2.name]


def test_checkpoints_of_another_version_are_ignored(root: Root) -> None:
    write_checkpoint(root, "a", 1, 0, {STAGE1.name: [row("one")]}, {})
    [name] = root.names(checkpoint_folder("a"))
    sink = pa.BufferOutputStream()
    other = schema_of(STAGE1.name).with_metadata({"schema_version": "0"})
    pq.write_table(pa.Table.from_pylist([], schema=other), sink)
    root.write(f"{checkpoint_folder('a')}/{name}", sink.getvalue().to_pybytes())
    assert list(read_checkpoints(root, "a")) == []


def test_stage_1_is_written_before_stage_2(root: Root, tmp_path: Path) -> None:
    taken = tmp_path / checkpoint_folder("a") / "000001-000000-stage2_captions.parquet"
    taken.mkdir(parents=True)  # where stage 2 should go: its writing breaks off
    with pytest.raises(StoreError):
        write_checkpoint(root, "a", 1, 0, {STAGE1.name: [row("one")], STAGE2.name: [row("one")]}, {})
    taken.rmdir()
    assert [part.table for part in read_checkpoints(root, "a")] == [STAGE1.name]
