"""Tests of damaged state of one of three shards: it is published correctly or fails, and the others are published."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caption_assets.captioning.open_shard import Published
from caption_assets.captioning.request import Request
from caption_assets.captioning.shard_queue import caption_shards
from caption_assets.captioning.supervisor import EngineSupervisor
from tests.captioning.fake_engine import FakeEngine, SequentialEngine, start_fake_engine
from tests.captioning.harness import TABLES, Harness
from tests.captioning.run_events import RunEvents
from tests.conftest import SANDBOX
from tests.damage import (
    Damage,
    change_texts,
    drop_column,
    edit_json,
    fill_with_invalid_utf8,
    fill_with_nulls,
    fill_with_text,
    invert_pages,
    make_empty,
    remove_schema_version,
    replace_with_folder,
    replace_with_invalid_utf8,
    replace_with_json,
    replace_with_pandas_table,
    replace_with_pipe,
    set_later_schema_version,
    truncate,
)

FAST = pytest.mark.fast
SHARDS = ("a", "b", "c")
Rows = Mapping[tuple[str, str], list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class StoredState:
    """Three shards with published tables, and with checkpoints of clips that were added later."""

    harness: Harness
    whole: Rows
    """Rows that a run over undamaged state publishes."""
    requests: int
    """Number of its requests."""
    copies: Iterator[int]

    def copy(self) -> Harness:
        """A copy, to be damaged."""
        folder = self.harness.folder / f"copy-{next(self.copies)}"
        shutil.copytree(self.harness.folder / "root", folder / "root")
        (folder / "shards").symlink_to(self.harness.folder / "shards")
        return Harness(folder)


def rows_of(harness: Harness) -> Rows:
    return {(shard, table): harness.rows(table, shard) for shard in SHARDS for table in TABLES}


def stop_after_one_window(harness: Harness, shard: str) -> None:
    """Start a run over one shard and cancel it at the first request for a second window."""

    async def run() -> None:
        enough, windows = asyncio.Event(), set[str]()

        def on_request(request: Request) -> None:
            windows.add(request.video_id.split("-")[0])
            if len(windows) > 1:
                enough.set()

        running = asyncio.create_task(harness.caption(shard, engine=SequentialEngine(on_request, seconds=0.02)))
        await enough.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(run())


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> StoredState:
    harness = Harness(tmp_path_factory.mktemp("stored"))
    for shard in SHARDS:
        harness.add_clips(shard, f"{shard}-one")
    harness.run(*SHARDS)
    for shard in SHARDS:
        harness.add_clips(shard, f"{shard}-two")
        stop_after_one_window(harness, shard)
    found = StoredState(harness, {}, 0, count())
    undamaged = found.copy()
    assert undamaged.run(*SHARDS).failures == {}
    assert undamaged.requests.total() > 0
    return replace(found, whole=rows_of(undamaged), requests=undamaged.requests.total())


FILES = {
    "manifest": "clip_manifest/shard=b/manifest.parquet",
    "stage-1 table": "stage1_captions/shard=b/captions.parquet",
    "stage-2 table": "stage2_captions/shard=b/captions.parquet",
    "stage-1 checkpoint": "_checkpoints/shard=b/*-stage1_captions.parquet",
    "stage-2 checkpoint": "_checkpoints/shard=b/*-stage2_captions.parquet",
    "lease": "_checkpoints/shard=b/lease-*",
}


def state_file(harness: Harness, kind: str) -> Path:
    [path] = Path(harness.root.path).glob(FILES[kind])
    return path


def assert_other_shards_published(harness: Harness, stored: StoredState, events: RunEvents) -> None:
    assert {"a", "c"} <= set(events.tables)
    for shard in ("a", "c"):
        for table in TABLES:
            assert harness.rows(table, shard) == stored.whole[shard, table]


def assert_all_published(harness: Harness, stored: StoredState, events: RunEvents) -> None:
    assert events.failures == events.skips == {}
    assert set(events.tables) == set(SHARDS)
    assert rows_of(harness) == stored.whole


CONTENT: list[Damage] = [
    make_empty, truncate, replace_with_json, replace_with_invalid_utf8, invert_pages, change_texts,
    set_later_schema_version, remove_schema_version, replace_with_pandas_table,
    drop_column("window_id"), drop_column("status"), fill_with_text("window_index"),
    fill_with_invalid_utf8("clip_key"), fill_with_nulls("window_id"), fill_with_nulls("status"),
]  # fmt: skip
CAPTION_CONTENT = [*CONTENT, drop_column("caption"), fill_with_invalid_utf8("caption"), fill_with_text("attempts")]
NOT_A_FILE: list[Damage] = [replace_with_folder, replace_with_pipe]


@pytest.mark.parametrize("damage", CAPTION_CONTENT, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("stage-1 checkpoint", marks=FAST),
        pytest.param("stage-2 table", marks=FAST),
        pytest.param("stage-1 table", marks=pytest.mark.faults),
        pytest.param("stage-2 checkpoint", marks=pytest.mark.faults),
    ],
)
def test_damaged_captions_are_reported_and_recaptioned(stored: StoredState, kind: str, damage: Damage) -> None:
    harness = stored.copy()
    path = state_file(harness, kind)
    damage(path)
    events = harness.run(*SHARDS)
    assert_all_published(harness, stored, events)
    assert harness.requests.total() > stored.requests
    assert any(str(path) in warning and warning.startswith("b: ") for warning in events.warnings)


@FAST
@pytest.mark.parametrize("damage", NOT_A_FILE, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("kind", ["stage-1 checkpoint", "stage-2 checkpoint"])
def test_folder_or_pipe_in_place_of_a_checkpoint_is_ignored(stored: StoredState, kind: str, damage: Damage) -> None:
    harness = stored.copy()
    damage(state_file(harness, kind))
    assert_all_published(harness, stored, harness.run(*SHARDS))


@FAST
@pytest.mark.parametrize("damage", [*CONTENT, *NOT_A_FILE, Path.unlink], ids=lambda damage: damage.__name__)
def test_damaged_manifest_fails_its_shard_only(stored: StoredState, damage: Damage) -> None:
    harness = stored.copy()
    path = state_file(harness, "manifest")
    kept = harness.checkpoint_files("b")
    damage(path)
    events = harness.run(*SHARDS)
    assert_other_shards_published(harness, stored, events)
    assert events.failures.keys() == {"b"}
    assert str(path) in events.failures["b"]
    assert harness.checkpoint_files("b") == kept


LEASES: list[Damage] = [
    make_empty, truncate, replace_with_invalid_utf8, replace_with_json, *NOT_A_FILE,
    edit_json(lambda _: []),
    edit_json(lambda found: found.pop("owner") and None),
    edit_json(lambda found: found.update(seconds="soon")),
    edit_json(lambda found: found.update(seconds=float("nan"))),
    edit_json(lambda found: found.update(released="yes")),
]  # fmt: skip


@FAST
@pytest.mark.parametrize("damage", LEASES, ids=lambda damage: damage.__name__)
def test_damaged_lease_fails_its_shard_only(stored: StoredState, damage: Damage) -> None:
    harness = stored.copy()
    path = state_file(harness, "lease")
    kept = harness.checkpoint_files("b")
    damage(path)
    events = harness.run(*SHARDS)
    assert_other_shards_published(harness, stored, events)
    assert events.failures.keys() == {"b"}
    assert str(path) in events.failures["b"]
    assert harness.checkpoint_files("b") == kept
    shutil.rmtree(path) if path.is_dir() else path.unlink()  # the remedy in the message
    assert_all_published(harness, stored, harness.run(*SHARDS))


@FAST
def test_released_lease_of_a_later_version_is_acquired(stored: StoredState) -> None:
    harness = stored.copy()
    edit_json(lambda found: found.update(zone="eu", priority=[1]))(state_file(harness, "lease"))
    assert_all_published(harness, stored, harness.run(*SHARDS))


@FAST
def test_active_lease_of_a_later_version_is_respected(stored: StoredState) -> None:
    harness = stored.copy()
    later = edit_json(lambda found: found.update(zone="eu", owner="run of tomorrow", released=False))
    later(state_file(harness, "lease"))
    events = harness.run(*SHARDS)
    assert_other_shards_published(harness, stored, events)
    assert "run of tomorrow" in events.skips["b"]


@FAST
def test_old_lease_that_cannot_be_removed_is_a_warning(stored: StoredState) -> None:
    harness = stored.copy()
    (state_file(harness, "lease").parent / "lease-000000" / "something").mkdir(parents=True)
    events = harness.run(*SHARDS)
    assert_all_published(harness, stored, events)
    assert any("lease-000000" in warning for warning in events.warnings)


FOREIGN: list[str | bytes] = [
    "notes.parquet", "notes.txt", "x-y-stage1_captions.parquet", "000001-000000-a stage.parquet",
    "000001-stage1_captions.parquet", "lease-none", "lease-", ".DS_Store", b"\xff\xfe.parquet",
]  # fmt: skip


@FAST
@pytest.mark.parametrize("create", [lambda path: path.write_bytes(b"not ours"), Path.mkdir], ids=["files", "folders"])
def test_unknown_names_in_the_checkpoint_folder_are_ignored_and_kept(
    stored: StoredState, create: Callable[[Path], object]
) -> None:
    harness = stored.copy()
    folder = state_file(harness, "lease").parent
    paths = [folder / os.fsdecode(name) for name in FOREIGN]
    for path in paths:
        create(path)
    assert_all_published(harness, stored, harness.run(*SHARDS))
    assert all(path.exists() for path in paths)


@FAST
def test_file_in_place_of_the_checkpoint_folder_fails_its_shard_only(stored: StoredState) -> None:
    harness = stored.copy()
    folder = state_file(harness, "lease").parent
    shutil.rmtree(folder)
    folder.write_bytes(b"not ours")
    events = harness.run(*SHARDS)
    assert_other_shards_published(harness, stored, events)
    assert str(folder) in events.failures["b"]


@FAST
def test_lease_removed_during_the_run_fails_its_shard_and_keeps_finished_rows(stored: StoredState) -> None:
    harness = stored.copy()

    def on_request(request: Request) -> None:
        harness.count(request)
        for lease in (Path(harness.root.path) / "_checkpoints" / "shard=b").glob("lease-*"):
            lease.unlink()

    events = harness.run(*SHARDS, engine=FakeEngine(on_request))
    assert events.failures.keys() >= {"b"}
    assert "was removed while this run captioned the shard" in events.failures["b"]
    events = harness.run(*SHARDS)
    assert_all_published(harness, stored, events)
    assert harness.requests.total() == 0


class FailingObserver(RunEvents):
    """An observer that raises an error at one event of shard b."""

    def __init__(self, event: str, error: Exception) -> None:
        super().__init__()
        self._event = event
        self._error = error

    def _raise_at(self, event: str, shard: str) -> None:
        if (event, shard) == (self._event, "b"):
            raise self._error

    def started(self, shard: str, windows: int, unfinished: int) -> None:
        self._raise_at("started", shard)

    def captioned(self, shard: str, done: int, windows: int, *, ok: bool) -> None:
        self._raise_at("captioned", shard)

    def published(self, shard: str, published: Published) -> None:
        super().published(shard, published)
        self._raise_at("published", shard)


@FAST
@pytest.mark.parametrize("error", [KeyError("tags"), OSError(5, "broken"), MemoryError()])
@pytest.mark.parametrize("event", ["started", "captioned", "published"])
def test_unexpected_error_fails_its_shard_only_and_loses_no_row(
    stored: StoredState, event: str, error: Exception
) -> None:
    harness, events = stored.copy(), FailingObserver(event, error)
    supervisor = EngineSupervisor(lambda: start_fake_engine(FakeEngine(harness.count), harness.count_engine))
    asyncio.run(caption_shards(supervisor, SANDBOX, harness.caption_run(), SHARDS, [events]))
    assert_other_shards_published(harness, stored, events)
    assert f"unexpected {type(error).__name__}" in events.failures["b"]
    first = harness.requests.total()
    again = harness.run(*SHARDS)
    assert_all_published(harness, stored, again)
    if event != "captioned":  # there, windows in progress are captioned again
        assert first + harness.requests.total() == stored.requests


@FAST
@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_interrupt_is_not_reported_as_a_shard_failure(stored: StoredState, end: type[BaseException]) -> None:
    class InterruptingObserver(RunEvents):
        def published(self, shard: str, published: Published) -> None:
            raise end

    harness, events = stored.copy(), InterruptingObserver()
    supervisor = EngineSupervisor(lambda: start_fake_engine(FakeEngine()))
    with pytest.raises(end):
        asyncio.run(caption_shards(supervisor, SANDBOX, harness.caption_run(), SHARDS, [events]))
    assert events.failures == {}


Places = list[tuple[float, int]]
RANDOM = {
    "kind": st.sampled_from(list(FILES)),
    "places": st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=8),
    "keep": st.one_of(st.just(1.0), st.floats(0, 1)),
}


@FAST
@given(**RANDOM)
@settings(max_examples=10)
def test_random_damage_to_one_file_affects_its_shard_only(
    stored: StoredState, kind: str, places: Places, keep: float
) -> None:
    assert_damage_affects_its_shard_only(stored, kind, places, keep)


@pytest.mark.faults
@given(**RANDOM)
@settings(max_examples=100)
def test_much_random_damage_to_one_file_affects_its_shard_only(
    stored: StoredState, kind: str, places: Places, keep: float
) -> None:
    assert_damage_affects_its_shard_only(stored, kind, places, keep)


def assert_damage_affects_its_shard_only(stored: StoredState, kind: str, places: Places, keep: float) -> None:
    """Invert bits at some places, which are shares of the length, then truncate the file, and run."""
    harness = stored.copy()
    path = state_file(harness, kind)
    kept = harness.checkpoint_files("b")
    data = bytearray(path.read_bytes())
    for place, change in places:
        data[int(place * len(data))] ^= change
    path.write_bytes(data[: round(keep * len(data))])
    events = harness.run(*SHARDS)
    assert_other_shards_published(harness, stored, events)
    if "b" in events.tables:
        assert_all_published(harness, stored, events)
    else:
        assert events.failures.get("b") or events.skips.get("b")
        assert harness.checkpoint_files("b") == kept
    shutil.rmtree(harness.folder)
