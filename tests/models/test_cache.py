from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from caption_assets.models.cache import ensure_local
from caption_assets.models.mirror import publish
from caption_assets.models.variants import SAMPLE
from caption_assets.models.weights import MANIFEST, WeightsError, describe, mirror_path
from caption_assets.store.root import Root

pytestmark = pytest.mark.fast

WEIGHTS = "model.safetensors"


@pytest.fixture
def root(tmp_path: Path) -> Root:
    made = Root.open(str(tmp_path / "root"))
    publish(made, SAMPLE, tmp_path / "downloads")
    return made


def flip_a_bit(path: Path, *, unseen: bool = False) -> None:
    """Damage a file; ``unseen`` by its time of change."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)
    if unseen:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_the_local_copy_is_the_mirrors(root: Root, tmp_path: Path) -> None:
    folder = ensure_local(root, SAMPLE, tmp_path / "cache")
    assert describe(folder, SAMPLE) == describe(Path(root.full(mirror_path(SAMPLE))), SAMPLE)
    assert ensure_local(root, SAMPLE, tmp_path / "cache") == folder


def test_what_is_there_is_not_fetched_again(root: Root, tmp_path: Path) -> None:
    ensure_local(root, SAMPLE, tmp_path / "cache")
    Path(root.full(mirror_path(SAMPLE, WEIGHTS))).unlink()
    ensure_local(root, SAMPLE, tmp_path / "cache", verify=True)


def test_a_file_that_was_changed_is_repaired(root: Root, tmp_path: Path) -> None:
    folder = ensure_local(root, SAMPLE, tmp_path / "cache")
    whole = (folder / WEIGHTS).read_bytes()
    flip_a_bit(folder / WEIGHTS)
    (folder / "config.json").unlink()
    assert ensure_local(root, SAMPLE, tmp_path / "cache") == folder
    assert (folder / WEIGHTS).read_bytes() == whole
    assert (folder / "config.json").is_file()


def test_a_flipped_bit_that_left_size_and_time_alone_is_found_on_demand(root: Root, tmp_path: Path) -> None:
    folder = ensure_local(root, SAMPLE, tmp_path / "cache")
    whole = (folder / WEIGHTS).read_bytes()
    flip_a_bit(folder / WEIGHTS, unseen=True)
    ensure_local(root, SAMPLE, tmp_path / "cache")
    assert (folder / WEIGHTS).read_bytes() != whole
    ensure_local(root, SAMPLE, tmp_path / "cache", verify=True)
    assert (folder / WEIGHTS).read_bytes() == whole


def test_a_damaged_mirror_is_refused_and_repaired_by_publishing_again(root: Root, tmp_path: Path) -> None:
    flip_a_bit(Path(root.full(mirror_path(SAMPLE, WEIGHTS))))
    with pytest.raises(WeightsError, match=r"model\.safetensors has the SHA-256 .* materialize model_weights again"):
        ensure_local(root, SAMPLE, tmp_path / "cache")
    assert list((tmp_path / "cache").rglob(WEIGHTS)) == []
    publish(root, SAMPLE, tmp_path / "downloads")
    assert (ensure_local(root, SAMPLE, tmp_path / "cache") / WEIGHTS).is_file()


def test_a_file_that_the_mirror_lacks_is_told(root: Root, tmp_path: Path) -> None:
    Path(root.full(mirror_path(SAMPLE, WEIGHTS))).unlink()
    with pytest.raises(WeightsError, match=r"model\.safetensors is missing, which the manifest names"):
        ensure_local(root, SAMPLE, tmp_path / "cache")


def test_a_mirror_that_is_not_whole_is_none(root: Root, tmp_path: Path) -> None:
    Path(root.full(mirror_path(SAMPLE, MANIFEST))).unlink()
    with pytest.raises(WeightsError, match="materialize model_weights"):
        ensure_local(root, SAMPLE, tmp_path / "cache")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk on which no file of more bytes can be written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_takes_no_more_is_told_and_what_has_arrived_is_kept(root: Root, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with largest_file(1_000_000), pytest.raises(Exception, match="File too large"):
        ensure_local(root, SAMPLE, cache)
    [kept] = cache.rglob("config.json")
    kept_since = kept.stat().st_mtime_ns
    assert list(cache.rglob(WEIGHTS)) == []
    folder = ensure_local(root, SAMPLE, cache)
    assert (folder / "config.json").stat().st_mtime_ns == kept_since


def test_room_is_looked_for_before_anything_is_fetched(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(WeightsError, match=r"takes 0\.0 GB more, .* has 0\.0 GB left: .* CAPTION_CACHE"):
        ensure_local(root, SAMPLE, tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").rglob("*.*") if path.name != ".lock" and path.is_file()] == []


class CountingRoot(Root):
    """Counts what is downloaded."""

    __slots__ = ()
    downloads: list[str] = []  # noqa: RUF012 - one for all, as there is one test

    def download(self, path: str, file: Path) -> None:
        self.downloads.append(path)
        super().download(path, file)


def test_of_many_who_want_a_model_at_once_one_fetches_it(root: Root, tmp_path: Path) -> None:
    counting = CountingRoot(root.url, root.fs, root.path)
    with ThreadPoolExecutor(6) as pool:
        folders = set(pool.map(lambda _: ensure_local(counting, SAMPLE, tmp_path / "cache"), range(6)))
    assert len(folders) == 1
    assert len(counting.downloads) == len(set(counting.downloads)) > 3


def test_models_asked_for_longest_ago_make_room(root: Root, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    others = [replace(SAMPLE, revision=name) for name in ("old", "older", "recent")]
    for age, variant in zip((2, 3, 0), others, strict=True):
        publish(root, variant, tmp_path / "downloads")
        folder = ensure_local(root, variant, cache)
        then = time.time() - age * 3600
        os.utime(folder.with_name(folder.name + ".seen.json"), (then, then))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

    def cached() -> set[str]:
        return {path.parent.parent.name for path in cache.rglob(WEIGHTS)}

    ensure_local(root, SAMPLE, cache, limit=int(3.5 * size))
    assert cached() == {"old", "recent", SAMPLE.revision}
    ensure_local(root, others[1], cache, limit=size)
    assert cached() == {"recent", SAMPLE.revision, "older"}, "what was used within the hour stays"
