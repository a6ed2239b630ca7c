from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from caption_assets.models.cache import ensure_local
from caption_assets.models.mirror import publish
from caption_assets.models.variants import Variant
from caption_assets.models.weights import MANIFEST, WeightsError
from caption_assets.store.root import Root
from tests.models.files import PARTS, SHARD, contents, flip_a_bit, folder_of, write_model
from tests.models.hub_server import small_model

pytestmark = pytest.mark.fast

PROCESSES = get_context("fork")  # a model is in use until the process ends that has asked for it
FILES = small_model()
SIZE = sum(len(FILES[name]) for name in PARTS)


@pytest.fixture
def variant(root: Root, cache: Path, tmp_path: Path) -> Variant:
    """A model in the mirror."""
    return published(root, cache, tmp_path / "mine")


def published(root: Root, cache: Path, folder: Path) -> Variant:
    write_model(folder, FILES)
    variant = Variant(f"local/{folder.name}", "v1", path=str(folder))
    publish(root, variant, cache)
    return variant


def test_the_local_copy_is_the_mirrors(root: Root, cache: Path, variant: Variant) -> None:
    folder = ensure_local(root, variant, cache)
    assert contents(folder) == {name: FILES[name] for name in PARTS}
    assert ensure_local(root, variant, cache) == folder


def test_without_a_mirror_the_remedy_is_told(root: Root, cache: Path, variant: Variant) -> None:
    (folder_of(root, variant) / MANIFEST).unlink()
    with pytest.raises(WeightsError, match="materialize model_weights before the captions"):
        ensure_local(root, variant, cache)


def test_a_file_of_the_cache_that_is_damaged_is_fetched_again_alone(root: Root, cache: Path, variant: Variant) -> None:
    folder = ensure_local(root, variant, cache)
    flip_a_bit(folder / SHARD)
    (folder / "config.json").unlink()
    with (folder / "tokenizer.json").open("ab") as file:
        file.truncate(3)
    told: list[tuple[int, int]] = []
    assert ensure_local(root, variant, cache, on_progress=lambda done, total: told.append((done, total))) == folder
    assert contents(folder) == {name: FILES[name] for name in PARTS}
    assert told[-1][1] == sum(len(FILES[name]) for name in (SHARD, "config.json", "tokenizer.json"))


def test_a_bit_that_flips_without_a_trace_is_found_on_demand(root: Root, cache: Path, variant: Variant) -> None:
    folder = ensure_local(root, variant, cache)
    before = (folder / SHARD).stat()
    flip_a_bit(folder / SHARD)
    os.utime(folder / SHARD, ns=(before.st_atime_ns, before.st_mtime_ns))
    ensure_local(root, variant, cache)
    assert contents(folder)[SHARD] != FILES[SHARD]
    ensure_local(root, variant, cache, verify=True)
    assert contents(folder)[SHARD] == FILES[SHARD]


def test_who_reads_a_file_while_it_is_mended_reads_on_in_the_old_one(root: Root, cache: Path, variant: Variant) -> None:
    folder = ensure_local(root, variant, cache)
    flip_a_bit(folder / SHARD)
    with (folder / SHARD).open("rb") as reader:
        ensure_local(root, variant, cache)
        assert len(reader.read()) == len(FILES[SHARD])


def test_a_file_that_was_only_touched_is_not_fetched_again(root: Root, cache: Path, variant: Variant) -> None:
    folder = ensure_local(root, variant, cache)
    os.utime(folder / SHARD)
    (folder_of(root, variant) / SHARD).unlink()  # it could not be
    assert ensure_local(root, variant, cache) == folder


@pytest.mark.parametrize("damage", [flip_a_bit, Path.unlink, lambda path: os.truncate(path, 1000)])
def test_a_damaged_mirror_is_told_with_the_remedy_and_leaves_no_model(
    root: Root, cache: Path, variant: Variant, damage: object
) -> None:
    assert callable(damage)
    damage(folder_of(root, variant) / SHARD)
    with pytest.raises(WeightsError, match=f"{SHARD} .*set CAPTION_VERIFY_WEIGHTS=true and materialize model_weights"):
        ensure_local(root, variant, cache)
    assert not any(path.is_dir() and len(path.name) == 16 for path in cache.rglob("*"))
    publish(root, variant, cache, verify=True)
    assert contents(ensure_local(root, variant, cache)) == {name: FILES[name] for name in PARTS}


def test_what_has_arrived_before_an_interruption_is_kept(root: Root, cache: Path, variant: Variant) -> None:
    last = PARTS[-1]
    (folder_of(root, variant) / last).rename(root.full("aside"))
    with pytest.raises(WeightsError, match=f"{last} does not exist"):
        ensure_local(root, variant, cache)
    Path(root.full("aside")).rename(folder_of(root, variant) / last)
    [arriving] = cache.rglob("*.arriving")
    (arriving / SHARD).write_bytes(FILES[SHARD][:5000])
    arrived = [name for name, data in contents(arriving).items() if data == FILES[name]]
    assert arrived
    for name in arrived:
        (folder_of(root, variant) / name).unlink()  # they are not asked for again
    assert contents(ensure_local(root, variant, cache)) == {name: FILES[name] for name in PARTS}
    assert not arriving.exists()


def test_many_who_come_at_once_fetch_it_once(root: Root, cache: Path, variant: Variant) -> None:
    told: list[int] = []

    def one(_: int) -> Path:
        return ensure_local(root, variant, cache, on_progress=lambda done, total: told.append(done))

    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(one, range(8)))
    assert len(folders) == 1
    assert told.count(SIZE) == 1


def test_room_is_looked_for_first(root: Root, cache: Path, variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=50_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(WeightsError, match=r"0\.2 MB of weights .* where 0\.1 MB are free.*CAPTION_CACHE"):
        ensure_local(root, variant, cache)
    assert list(cache.rglob("*.safetensors")) == []


def test_a_cache_that_cannot_be_written_names_its_setting(root: Root, variant: Variant) -> None:
    with pytest.raises(WeightsError, match=r"cannot use /proc/nowhere .*\(CAPTION_CACHE\)"):
        ensure_local(root, variant, Path("/proc/nowhere"))


def in_another_process(root: Root, variant: Variant, cache: Path, ready: Event, end: Event) -> None:
    ensure_local(root, variant, cache)
    ready.set()
    end.wait(60)


@contextmanager
def used_elsewhere(root: Root, variant: Variant, cache: Path) -> Iterator[None]:
    """Another process of this machine uses the model while the block runs."""
    ready, end = PROCESSES.Event(), PROCESSES.Event()
    process = PROCESSES.Process(target=in_another_process, args=(root, variant, cache, ready, end))
    process.start()
    assert ready.wait(60)
    try:
        yield
    finally:
        end.set()
        process.join()


def models_in(cache: Path) -> set[str]:
    return {path.parts[-4].removeprefix("local--").rpartition("-")[0] for path in cache.rglob(SHARD)}


def test_the_models_not_used_for_the_longest_time_make_room(root: Root, cache: Path, tmp_path: Path) -> None:
    first, second, third, fourth = (published(root, cache, tmp_path / name) for name in ("a", "b", "c", "d"))
    for variant in (first, second, third, first):
        with used_elsewhere(root, variant, cache):
            time.sleep(0.01)
    ensure_local(root, fourth, cache, limit=3 * SIZE)
    assert models_in(cache) == {"c", "a", "d"}
    ensure_local(root, second, cache, limit=2 * SIZE)
    assert models_in(cache) == {"b", "d"}, "this process still uses the one"


def test_a_model_that_another_process_uses_is_never_removed(root: Root, cache: Path, tmp_path: Path) -> None:
    first, second, third = (published(root, cache, tmp_path / name) for name in ("a", "b", "c"))
    with used_elsewhere(root, first, cache):
        with used_elsewhere(root, second, cache):
            pass
        ensure_local(root, third, cache, limit=2 * SIZE)
        assert models_in(cache) == {"a", "c"}
        with pytest.raises(WeightsError, match=r"CAPTION_CACHE_GB allows 0\.4 MB .* there would be 0\.6 MB: raise it"):
            ensure_local(root, second, cache, limit=2 * SIZE)
        assert models_in(cache) == {"a", "c"}


def test_a_model_that_was_removed_is_fetched_anew(root: Root, cache: Path, tmp_path: Path) -> None:
    first, second = (published(root, cache, tmp_path / name) for name in ("a", "b"))
    for variant in (first, second, first):
        with used_elsewhere(root, variant, cache):
            pass
    ensure_local(root, second, cache, limit=SIZE)
    assert models_in(cache) == {"b"}
    assert contents(ensure_local(root, first, cache)) == {name: FILES[name] for name in PARTS}


def test_stamps_that_cannot_be_read_are_made_anew(root: Root, cache: Path, variant: Variant) -> None:
    folder = ensure_local(root, variant, cache)
    stamps = folder.with_name(f"{folder.name}.verified")
    stamps.write_text("{")
    ensure_local(root, variant, cache)
    assert sorted(json.loads(stamps.read_text())) == PARTS
