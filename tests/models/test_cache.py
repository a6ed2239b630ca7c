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

from caption_assets.models.cache import CacheConfig, ensure_local, ensure_local_from_source, find_local
from caption_assets.models.mirror import publish
from caption_assets.models.variants import SAMPLE, Variant
from caption_assets.models.weights import MANIFEST, WeightsError
from caption_assets.store.root import Root
from tests.models.files import PARTS, SHARD, contents, flip_a_bit, folder_of, write_model
from tests.models.hub_server import small_model

pytestmark = pytest.mark.fast

PROCESSES = get_context("fork")  # a model is in use until the process that requested it exits
FILES = small_model()
SIZE = sum(len(FILES[name]) for name in PARTS)


@pytest.fixture
def variant(root: Root, cache: Path, tmp_path: Path) -> Variant:
    """A mirrored model."""
    return published(root, cache, tmp_path / "mine")


def published(root: Root, cache: Path, folder: Path) -> Variant:
    write_model(folder, FILES)
    variant = Variant(f"local/{folder.name}", "v1", path=str(folder))
    publish(root, variant, cache)
    return variant


def test_local_folder_equals_the_mirror(root: Root, cache: Path, variant: Variant) -> None:
    folder = ensure_local(root, variant, cache)
    assert contents(folder) == {name: FILES[name] for name in PARTS}
    assert ensure_local(root, variant, cache) == folder


def test_local_folder_is_found_without_the_root(root: Root, cache: Path, variant: Variant) -> None:
    shutil.rmtree(str(variant.path))
    assert find_local(variant, cache) is None
    folder = ensure_local(root, variant, cache)
    assert find_local(variant, cache) == folder


def test_model_by_folder_is_found_in_its_folder(cache: Path, tmp_path: Path) -> None:
    assert find_local(Variant("local/mine", "v1", path=str(tmp_path)), cache) == tmp_path
    assert find_local(Variant("local/mine", "v1", path=str(tmp_path / "nowhere")), cache) is None


def test_missing_mirror_is_an_error_with_a_remedy(root: Root, cache: Path, variant: Variant) -> None:
    (folder_of(root, variant) / MANIFEST).unlink()
    with pytest.raises(WeightsError, match="materialize model_weights before the captions"):
        ensure_local(root, variant, cache)


def test_only_damaged_files_of_the_cache_are_downloaded_again(root: Root, cache: Path, variant: Variant) -> None:
    folder = ensure_local(root, variant, cache)
    flip_a_bit(folder / SHARD)
    (folder / "config.json").unlink()
    with (folder / "tokenizer.json").open("ab") as file:
        file.truncate(3)
    reported: list[tuple[int, int]] = []
    assert ensure_local(root, variant, cache, on_progress=lambda done, total: reported.append((done, total))) == folder
    assert contents(folder) == {name: FILES[name] for name in PARTS}
    assert reported[-1][1] == sum(len(FILES[name]) for name in (SHARD, "config.json", "tokenizer.json"))


def test_silent_corruption_is_detected_by_full_verification(root: Root, cache: Path, variant: Variant) -> None:
    folder = ensure_local(root, variant, cache)
    before = (folder / SHARD).stat()
    flip_a_bit(folder / SHARD)
    os.utime(folder / SHARD, ns=(before.st_atime_ns, before.st_mtime_ns))
    ensure_local(root, variant, cache)
    assert contents(folder)[SHARD] != FILES[SHARD]
    ensure_local(root, variant, cache, verify=True)
    assert contents(folder)[SHARD] == FILES[SHARD]


def test_reader_keeps_the_old_file_while_it_is_repaired(root: Root, cache: Path, variant: Variant) -> None:
    folder = ensure_local(root, variant, cache)
    flip_a_bit(folder / SHARD)
    with (folder / SHARD).open("rb") as reader:
        ensure_local(root, variant, cache)
        assert len(reader.read()) == len(FILES[SHARD])


def test_touched_file_is_not_downloaded_again(root: Root, cache: Path, variant: Variant) -> None:
    folder = ensure_local(root, variant, cache)
    os.utime(folder / SHARD)
    (folder_of(root, variant) / SHARD).unlink()  # a download would fail
    assert ensure_local(root, variant, cache) == folder


@pytest.mark.parametrize("damage", [flip_a_bit, Path.unlink, lambda path: os.truncate(path, 1000)])
def test_damaged_mirror_is_an_error_and_leaves_no_model(
    root: Root, cache: Path, variant: Variant, damage: object
) -> None:
    assert callable(damage)
    damage(folder_of(root, variant) / SHARD)
    with pytest.raises(WeightsError, match=f"{SHARD} .*set CAPTION_VERIFY_WEIGHTS=true and materialize model_weights"):
        ensure_local(root, variant, cache)
    assert not any(path.is_dir() and len(path.name) == 16 for path in cache.rglob("*"))
    publish(root, variant, cache, verify=True)
    assert contents(ensure_local(root, variant, cache)) == {name: FILES[name] for name in PARTS}


def test_interrupted_download_keeps_complete_files(root: Root, cache: Path, variant: Variant) -> None:
    last = PARTS[-1]
    (folder_of(root, variant) / last).rename(root.full("aside"))
    with pytest.raises(WeightsError, match=f"{last} does not exist"):
        ensure_local(root, variant, cache)
    Path(root.full("aside")).rename(folder_of(root, variant) / last)
    [partial] = cache.rglob("*.arriving")
    (partial / SHARD).write_bytes(FILES[SHARD][:5000])
    complete = [name for name, data in contents(partial).items() if data == FILES[name]]
    assert complete
    for name in complete:
        (folder_of(root, variant) / name).unlink()  # they are not downloaded again
    assert contents(ensure_local(root, variant, cache)) == {name: FILES[name] for name in PARTS}
    assert not partial.exists()


def test_concurrent_callers_download_once(root: Root, cache: Path, variant: Variant) -> None:
    reported: list[int] = []

    def ensure(_: int) -> Path:
        return ensure_local(root, variant, cache, on_progress=lambda done, total: reported.append(done))

    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(ensure, range(8)))
    assert len(folders) == 1
    assert reported.count(SIZE) == 1


def test_too_little_space_is_an_error_before_the_download(
    root: Root, cache: Path, variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=50_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        WeightsError, match=r"0\.2 MB of weights do not fit into .*, which has 0\.1 MB free.*CAPTION_CACHE"
    ):
        ensure_local(root, variant, cache)
    assert list(cache.rglob("*.safetensors")) == []


def test_unwritable_cache_is_an_error_with_its_setting(root: Root, variant: Variant) -> None:
    with pytest.raises(WeightsError, match=r"cannot use the weights cache /proc/nowhere .*\(CAPTION_CACHE\)"):
        ensure_local(root, variant, Path("/proc/nowhere"))


def use_model(root: Root, variant: Variant, cache: Path, ready: Event, end: Event) -> None:
    ensure_local(root, variant, cache)
    ready.set()
    end.wait(60)


@contextmanager
def used_by_another_process(root: Root, variant: Variant, cache: Path) -> Iterator[None]:
    """Let another process use the model during the block."""
    ready, end = PROCESSES.Event(), PROCESSES.Event()
    process = PROCESSES.Process(target=use_model, args=(root, variant, cache, ready, end))
    process.start()
    assert ready.wait(60)
    try:
        yield
    finally:
        end.set()
        process.join()


def models_in(cache: Path) -> set[str]:
    return {path.parts[-4].removeprefix("local--").rpartition("-")[0] for path in cache.rglob(SHARD)}


def test_least_recently_used_models_are_evicted(root: Root, cache: Path, tmp_path: Path) -> None:
    first, second, third, fourth = (published(root, cache, tmp_path / name) for name in ("a", "b", "c", "d"))
    for variant in (first, second, third, first):
        with used_by_another_process(root, variant, cache):
            time.sleep(0.01)
    ensure_local(root, fourth, cache, limit=3 * SIZE)
    assert models_in(cache) == {"c", "a", "d"}
    ensure_local(root, second, cache, limit=2 * SIZE)
    assert models_in(cache) == {"b", "d"}, "this process still uses d"


def test_model_in_use_by_another_process_is_never_evicted(root: Root, cache: Path, tmp_path: Path) -> None:
    first, second, third = (published(root, cache, tmp_path / name) for name in ("a", "b", "c"))
    with used_by_another_process(root, first, cache):
        with used_by_another_process(root, second, cache):
            pass
        ensure_local(root, third, cache, limit=2 * SIZE)
        assert models_in(cache) == {"a", "c"}
        with pytest.raises(
            WeightsError, match=r"would need 0\.6 MB .*, but CAPTION_CACHE_GB limits it to 0\.4 MB: raise"
        ):
            ensure_local(root, second, cache, limit=2 * SIZE)
        assert models_in(cache) == {"a", "c"}


def test_evicted_model_is_downloaded_again(root: Root, cache: Path, tmp_path: Path) -> None:
    first, second = (published(root, cache, tmp_path / name) for name in ("a", "b"))
    for variant in (first, second, first):
        with used_by_another_process(root, variant, cache):
            pass
    ensure_local(root, second, cache, limit=SIZE)
    assert models_in(cache) == {"b"}
    assert contents(ensure_local(root, first, cache)) == {name: FILES[name] for name in PARTS}


def test_invalid_verification_record_is_rewritten(root: Root, cache: Path, variant: Variant) -> None:
    folder = ensure_local(root, variant, cache)
    record = folder.with_name(f"{folder.name}.verified")
    record.write_text("{")
    ensure_local(root, variant, cache)
    assert sorted(json.loads(record.read_text())) == PARTS


def test_local_folder_is_used_where_it_is(cache: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "mine", FILES)
    variant = Variant("local/mine", "v1", path=str(tmp_path / "mine"))
    assert ensure_local_from_source(variant, CacheConfig(cache)) == tmp_path / "mine"
    assert not cache.exists()


def test_local_folder_without_a_model_is_an_error(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=str(tmp_path)):
        ensure_local_from_source(Variant("local/mine", "v1", path=str(tmp_path)), CacheConfig(cache))


def test_embedded_model_is_used_where_it_is(cache: Path) -> None:
    assert (ensure_local_from_source(SAMPLE, CacheConfig(cache)) / "config.json").is_file()
    assert not cache.exists()
