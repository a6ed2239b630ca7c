from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from caption_assets.store.root import Root
from caption_assets.store.trash import (
    TIME_FORMAT,
    TRASH,
    Entry,
    TrashError,
    list_entries,
    move_to_trash,
    remove_entry,
    restore_entry,
)

PATHS = ("stage1_captions/shard=a/captions.parquet", "gallery/a/index.html", "gallery/a/previews/1.jpg")


@pytest.fixture(params=[pytest.param("local", marks=pytest.mark.fast), pytest.param("s3", marks=pytest.mark.store)])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    """A root with the outputs of shard a, on the local disk and on an S3 API."""
    root = Root.open(str(tmp_path / "root") if request.param == "local" else request.getfixturevalue("s3_url"))
    write(root)
    return root


def write(root: Root, paths: Sequence[str] = PATHS, note: str = "") -> None:
    for path in paths:
        root.write(path, (path + note).encode())


def stored(root: Root) -> dict[str, bytes]:
    """All objects outside the trash."""
    return {path: root.read(path) for folder in ("stage1_captions", "gallery") for path in root.sizes(folder)}


def move(root: Root, *paths: str) -> Entry:
    entry = move_to_trash(root, "a", paths or PATHS)
    assert entry
    return entry


def test_moved_objects_can_be_restored(root: Root) -> None:
    before = stored(root)
    entry = move(root)
    assert stored(root) == {}
    assert entry.is_complete
    assert entry.sizes == {path: len(path) for path in PATHS}
    restore_entry(root, entry)
    assert stored(root) == before
    assert root.names(TRASH) == []


def test_two_moves_make_two_entries(root: Root) -> None:
    first = move(root)
    write(root, note="again")
    second = move(root)
    assert [entry.time for entry in list_entries(root)] == [first.time, second.time]
    restore_entry(root, first)
    assert stored(root) == {path: path.encode() for path in PATHS}


@pytest.mark.parametrize("newer", [b"longer than before" * 9, PATHS[0].upper().encode()], ids=["longer", "same size"])
def test_restore_over_newer_objects_is_an_error(root: Root, newer: bytes) -> None:
    entry = move(root)
    root.write(PATHS[0], newer)
    with pytest.raises(TrashError, match="the shard was materialized again; retire it first"):
        restore_entry(root, entry)
    assert stored(root) == {PATHS[0]: newer}
    assert list_entries(root) == [entry]


def test_interrupted_move_is_completed_in_the_same_entry(root: Root) -> None:
    entry = move(root, PATHS[0])
    root.remove(f"{entry.folder}/_complete")
    root.write(PATHS[0], PATHS[0].encode())  # copied but not yet deleted
    completed = move(root)
    assert list_entries(root) == [completed]
    assert completed.time == entry.time
    assert completed.sizes.keys() == set(PATHS)
    assert stored(root) == {}


def test_interrupted_move_of_all_objects_is_completed_by_its_marker(root: Root) -> None:
    entry = move(root)
    root.remove(f"{entry.folder}/_complete")
    assert move_to_trash(root, "a", ()) == entry


def test_objects_made_after_an_interrupted_move_get_a_new_entry(root: Root) -> None:
    entry = move(root)
    root.remove(f"{entry.folder}/_complete")
    write(root, note="again")
    second = move(root)
    first, last = list_entries(root)
    assert (first.time, last) == (entry.time, second)
    restore_entry(root, first)
    assert stored(root) == {path: path.encode() for path in PATHS}


def test_interrupted_restore_is_completed(root: Root) -> None:
    before = stored(root)
    entry = move(root)
    root.remove(f"{entry.folder}/_complete")
    root.move(f"{entry.folder}/{PATHS[0]}", PATHS[0])
    root.write(PATHS[1], PATHS[1].encode())  # copied but not yet deleted
    [left] = list_entries(root, "a")
    restore_entry(root, left)
    assert stored(root) == before
    assert root.sizes(TRASH) == {}


def test_removing_an_entry_keeps_others(root: Root) -> None:
    first = move(root)
    write(root, note="again")
    second = move(root)
    remove_entry(root, first)
    assert list_entries(root) == [second]
    assert 0 <= second.age_days < 0.1
    remove_entry(root, second)
    assert root.names(TRASH) == []


@pytest.mark.fast
def test_age_is_counted_in_days() -> None:
    time = (datetime.now(UTC) - timedelta(days=30)).strftime(TIME_FORMAT)
    assert Entry("a", time, {}, is_complete=True).age_days == pytest.approx(30, abs=0.0001)


def test_shard_without_objects_makes_no_entry(root: Root) -> None:
    assert move_to_trash(root, "b", ()) is None
    assert list_entries(root) == []


def test_foreign_objects_in_the_trash_are_ignored(root: Root) -> None:
    for path in ("notes.txt", "shard=a/notes.txt", "shard=a/yesterday/x", "b/2026-01-01T00-00-00-000000Z/x"):
        root.write(f"{TRASH}/{path}", b"x")
    assert list_entries(root) == []
    assert list_entries(root, "a") == []


PROGRAM = """
import sys
from caption_assets.store.root import Root
from caption_assets.store.trash import TIME_FORMAT, restore_entry, list_entries, move_to_trash
root = Root.open(sys.argv[1])
print("ready", flush=True)
if sys.argv[2] == "move":
    move_to_trash(root, "a", list(root.sizes("gallery")))
else:
    restore_entry(root, list_entries(root, "a")[0])
"""


@pytest.mark.faults
@pytest.mark.parametrize("direction", ["move", "restore"])
def test_killed_process_loses_no_object(root: Root, direction: str) -> None:
    paths = [f"gallery/a/previews/{number}.jpg" for number in range(100)]
    write(root, paths)
    everything = stored(root)
    if direction == "restore":
        move_to_trash(root, "a", list(root.sizes("gallery")))
    for seconds in (0.002, 0.02, 0.1):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, root.url, direction], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        in_trash = {path for entry in list_entries(root) for path in entry.sizes}
        assert in_trash | stored(root).keys() == everything.keys()
    if direction == "move":
        move_to_trash(root, "a", list(root.sizes("gallery")))
        assert len(list_entries(root)) == 1
    for entry in list_entries(root):
        restore_entry(root, entry)
    assert stored(root) == everything
