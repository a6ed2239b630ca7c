"""Damaged state of one shard of three: the others are published whole, and it is published right or says why not."""

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
from tests.captioning.stand_in import StandIn, start_stand_in
from tests.captioning.test_shard_queue import BOTH, OneByOne, World
from tests.captioning.watch import Log
from tests.conftest import SANDBOX
from tests.damage import files as made
from tests.damage.files import Damage

FAST = pytest.mark.fast
SHARDS = ("a", "b", "c")
Rows = Mapping[tuple[str, str], list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Stored:
    """Three shards, each with an earlier pair of tables and with checkpoints of windows that were added since."""

    world: World
    whole: Rows
    """What a run over undamaged state publishes."""
    asked: int
    """Requests that it makes."""
    copies: Iterator[int]

    def copy(self) -> World:
        """The same, to be damaged."""
        folder = self.world.folder / f"copy-{next(self.copies)}"
        shutil.copytree(self.world.folder / "root", folder / "root")
        (folder / "shards").symlink_to(self.world.folder / "shards")
        return World(folder)


def rows_of(world: World) -> Rows:
    return {(shard, table): world.rows(table, shard) for shard in SHARDS for table in BOTH}


def stop_after_one_window(world: World, shard: str) -> None:
    """A run over one shard that is canceled when the engine is asked about a second window."""

    async def run() -> None:
        enough, windows = asyncio.Event(), set[str]()

        def asked(request: Request) -> None:
            windows.add(request.video_id.split("-")[0])
            if len(windows) > 1:
                enough.set()

        running = asyncio.create_task(world.captions(shard, engine=OneByOne(asked, seconds=0.02)))
        await enough.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(run())


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    world = World(tmp_path_factory.mktemp("stored"))
    for shard in SHARDS:
        world.add_clips(shard, f"{shard}-one")
    world.run(*SHARDS)
    for shard in SHARDS:
        world.add_clips(shard, f"{shard}-two")
        stop_after_one_window(world, shard)
    found = Stored(world, {}, 0, count())
    undamaged = found.copy()
    assert undamaged.run(*SHARDS).failures == {}
    assert undamaged.asked.total() > 0  # a window of each shard at least
    return replace(found, whole=rows_of(undamaged), asked=undamaged.asked.total())


FILES = {
    "manifest": "clip_manifest/shard=b/manifest.parquet",
    "stage-1 table": "stage1_captions/shard=b/captions.parquet",
    "stage-2 table": "stage2_captions/shard=b/captions.parquet",
    "stage-1 checkpoint": "_checkpoints/shard=b/*-stage1_captions.parquet",
    "stage-2 checkpoint": "_checkpoints/shard=b/*-stage2_captions.parquet",
    "lease": "_checkpoints/shard=b/lease-*",
}


def state_file(world: World, kind: str) -> Path:
    [path] = Path(world.root.path).glob(FILES[kind])
    return path


def assert_others_whole(world: World, stored: Stored, log: Log) -> None:
    assert {"a", "c"} <= set(log.tables)
    for shard in ("a", "c"):
        for table in BOTH:
            assert world.rows(table, shard) == stored.whole[shard, table]


def assert_published_right(world: World, stored: Stored, log: Log) -> None:
    assert log.failures == log.skips == {}
    assert set(log.tables) == set(SHARDS)
    assert rows_of(world) == stored.whole


CONTENT: list[Damage] = [
    made.emptied, made.cut, made.foreign, made.not_utf8, made.broken_pages, made.another_text, made.a_later_schema,
    made.no_schema_version, made.by_pandas, made.without("window_id"), made.without("status"),
    made.with_text_in("window_index"), made.with_bytes_in("clip_key"), made.with_nothing_in("window_id"),
    made.with_nothing_in("status"),
]  # fmt: skip
CAPTION_CONTENT = [*CONTENT, made.without("caption"), made.with_bytes_in("caption"), made.with_text_in("attempts")]
NOT_A_FILE: list[Damage] = [made.a_folder, made.a_pipe]


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
def test_damaged_captions_count_as_absent_and_are_made_again(stored: Stored, kind: str, damage: Damage) -> None:
    world = stored.copy()
    path = state_file(world, kind)
    damage(path)
    log = world.run(*SHARDS)
    assert_published_right(world, stored, log)
    assert world.asked.total() > stored.asked
    assert any(str(path) in warning and warning.startswith("b: ") for warning in log.warnings)


@FAST
@pytest.mark.parametrize("damage", NOT_A_FILE, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("kind", ["stage-1 checkpoint", "stage-2 checkpoint"])
def test_what_is_no_file_in_a_checkpoints_place_counts_as_absent(stored: Stored, kind: str, damage: Damage) -> None:
    world = stored.copy()
    damage(state_file(world, kind))
    assert_published_right(world, stored, world.run(*SHARDS))


@FAST
@pytest.mark.parametrize("damage", [*CONTENT, *NOT_A_FILE, Path.unlink], ids=lambda damage: damage.__name__)
def test_a_damaged_manifest_fails_its_shard_alone(stored: Stored, damage: Damage) -> None:
    world = stored.copy()
    path = state_file(world, "manifest")
    kept = world.left_over("b")
    damage(path)
    log = world.run(*SHARDS)
    assert_others_whole(world, stored, log)
    assert log.failures.keys() == {"b"}
    assert str(path) in log.failures["b"]
    assert world.left_over("b") == kept


LEASES: list[Damage] = [
    made.emptied, made.cut, made.not_utf8, made.foreign, *NOT_A_FILE,
    made.record(lambda _: []),
    made.record(lambda found: found.pop("owner") and None),
    made.record(lambda found: found.update(seconds="soon")),
    made.record(lambda found: found.update(seconds=float("nan"))),
    made.record(lambda found: found.update(released="yes")),
]  # fmt: skip


@FAST
@pytest.mark.parametrize("damage", LEASES, ids=lambda damage: damage.__name__)
def test_a_damaged_lease_fails_its_shard_alone(stored: Stored, damage: Damage) -> None:
    world = stored.copy()
    path = state_file(world, "lease")
    kept = world.left_over("b")
    damage(path)
    log = world.run(*SHARDS)
    assert_others_whole(world, stored, log)
    assert log.failures.keys() == {"b"}
    assert str(path) in log.failures["b"]
    assert world.left_over("b") == kept
    shutil.rmtree(path) if path.is_dir() else path.unlink()  # as the message says
    assert_published_right(world, stored, world.run(*SHARDS))


@FAST
def test_a_released_lease_of_a_later_version_is_taken(stored: Stored) -> None:
    world = stored.copy()
    made.record(lambda found: found.update(zone="eu", priority=[1]))(state_file(world, "lease"))
    assert_published_right(world, stored, world.run(*SHARDS))


@FAST
def test_a_held_lease_of_a_later_version_is_respected(stored: Stored) -> None:
    world = stored.copy()
    later = made.record(lambda found: found.update(zone="eu", owner="run of tomorrow", released=False))
    later(state_file(world, "lease"))
    log = world.run(*SHARDS)
    assert_others_whole(world, stored, log)
    assert "run of tomorrow" in log.skips["b"]


@FAST
def test_an_old_lease_that_cannot_be_removed_does_no_harm(stored: Stored) -> None:
    world = stored.copy()
    (state_file(world, "lease").parent / "lease-000000" / "something").mkdir(parents=True)
    log = world.run(*SHARDS)
    assert_published_right(world, stored, log)
    assert any("lease-000000" in warning for warning in log.warnings)


FOREIGN: list[str | bytes] = [
    "notes.parquet", "notes.txt", "x-y-stage1_captions.parquet", "000001-000000-a stage.parquet",
    "000001-stage1_captions.parquet", "lease-none", "lease-", ".DS_Store", b"\xff\xfe.parquet",
]  # fmt: skip


@FAST
@pytest.mark.parametrize("lay", [lambda path: path.write_bytes(b"not ours"), Path.mkdir], ids=["files", "folders"])
def test_what_is_foreign_among_the_checkpoints_stays_and_does_no_harm(
    stored: Stored, lay: Callable[[Path], object]
) -> None:
    world = stored.copy()
    folder = state_file(world, "lease").parent
    paths = [folder / os.fsdecode(name) for name in FOREIGN]
    for path in paths:
        lay(path)
    assert_published_right(world, stored, world.run(*SHARDS))
    assert all(path.exists() for path in paths)


@FAST
def test_checkpoints_that_are_no_folder_fail_their_shard_alone(stored: Stored) -> None:
    world = stored.copy()
    folder = state_file(world, "lease").parent
    shutil.rmtree(folder)
    folder.write_bytes(b"not ours")
    log = world.run(*SHARDS)
    assert_others_whole(world, stored, log)
    assert str(folder) in log.failures["b"]


@FAST
def test_a_lease_that_is_removed_meanwhile_fails_its_shard_and_keeps_what_is_done(stored: Stored) -> None:
    world = stored.copy()

    def asked(request: Request) -> None:
        world.count(request)
        for lease in (Path(world.root.path) / "_checkpoints" / "shard=b").glob("lease-*"):
            lease.unlink()

    log = world.run(*SHARDS, engine=StandIn(asked))
    assert log.failures.keys() >= {"b"}
    assert "was removed while this run captioned the shard" in log.failures["b"]
    log = world.run(*SHARDS)
    assert_published_right(world, stored, log)
    assert world.asked.total() == 0


class Breaks(Log):
    """Raises what nobody foresaw when it is told of one shard."""

    def __init__(self, when: str, error: Exception) -> None:
        super().__init__()
        self._when = when
        self._error = error

    def _told(self, what: str, shard: str) -> None:
        if (what, shard) == (self._when, "b"):
            raise self._error

    def begun(self, shard: str, windows: int, left: int) -> None:
        self._told("begun", shard)

    def captioned(self, shard: str, done: int, windows: int, *, ok: bool) -> None:
        self._told("captioned", shard)

    def published(self, shard: str, published: Published) -> None:
        super().published(shard, published)
        self._told("published", shard)


@FAST
@pytest.mark.parametrize("error", [KeyError("tags"), OSError(5, "broken"), MemoryError()])
@pytest.mark.parametrize("when", ["begun", "captioned", "published"])
def test_an_unforeseen_error_is_its_shards_and_no_row_is_lost(stored: Stored, when: str, error: Exception) -> None:
    world, log = stored.copy(), Breaks(when, error)
    supervisor = EngineSupervisor(lambda: start_stand_in(StandIn(world.count), world.count_engine))
    asyncio.run(caption_shards(supervisor, SANDBOX, world.job(), SHARDS, [log]))
    assert_others_whole(world, stored, log)
    assert f"unexpected {type(error).__name__}" in log.failures["b"]
    first = world.asked.total()
    again = world.run(*SHARDS)
    assert_published_right(world, stored, again)
    if when != "captioned":  # of which windows that were under way are made again
        assert first + world.asked.total() == stored.asked


@FAST
@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_the_end_of_a_run_is_no_shards_failure(stored: Stored, end: type[BaseException]) -> None:
    class Ends(Log):
        def published(self, shard: str, published: Published) -> None:
            raise end

    world, log = stored.copy(), Ends()
    supervisor = EngineSupervisor(lambda: start_stand_in(StandIn()))
    with pytest.raises(end):
        asyncio.run(caption_shards(supervisor, SANDBOX, world.job(), SHARDS, [log]))
    assert log.failures == {}


Places = list[tuple[float, int]]
RANDOM = {
    "kind": st.sampled_from(list(FILES)),
    "places": st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=8),
    "keep": st.one_of(st.just(1.0), st.floats(0, 1)),
}


@FAST
@given(**RANDOM)
@settings(max_examples=10)
def test_random_damage_to_one_file_costs_no_other_shard_and_makes_no_wrong_table(
    stored: Stored, kind: str, places: Places, keep: float
) -> None:
    assert_damage_stays_with_its_shard(stored, kind, places, keep)


@pytest.mark.faults
@given(**RANDOM)
@settings(max_examples=100)
def test_much_random_damage_to_one_file_costs_no_other_shard_and_makes_no_wrong_table(
    stored: Stored, kind: str, places: Places, keep: float
) -> None:
    assert_damage_stays_with_its_shard(stored, kind, places, keep)


def assert_damage_stays_with_its_shard(stored: Stored, kind: str, places: Places, keep: float) -> None:
    """Turn over some bits at some places, which are shares of the length; then cut the file."""
    world = stored.copy()
    path = state_file(world, kind)
    kept = {name: Path(world.root.full(f"_checkpoints/shard=b/{name}")).read_bytes() for name in world.left_over("b")}
    data = bytearray(path.read_bytes())
    for place, change in places:
        data[int(place * len(data))] ^= change
    path.write_bytes(data[: round(keep * len(data))])
    log = world.run(*SHARDS)
    assert_others_whole(world, stored, log)
    if "b" in log.tables:
        assert_published_right(world, stored, log)
    else:
        assert log.failures.get("b") or log.skips.get("b")
        assert kept.keys() == set(world.left_over("b"))
    shutil.rmtree(world.folder)
