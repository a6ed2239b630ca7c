"""Models on this machine's disk, from where the engine loads them."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from caption_assets.models.progress import Progress
from caption_assets.models.variants import Variant
from caption_assets.models.weights import (
    WeightFile,
    WeightsError,
    WeightsManifest,
    check_space,
    file_hash,
    mirror_path,
    read_manifest,
)
from caption_assets.store.root import Root

IDLE_SECONDS = 3600.0
"""A model that was asked for within this time is not evicted: an engine may be loading it."""
_SEEN = ".seen.json"
"""Beside a model's folder: size and time of change of each file when it was last found whole."""


def ensure_local(
    root: Root,
    variant: Variant,
    cache: Path,
    *,
    limit: int | None = None,
    verify: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Path:
    """The folder on this machine from which the engine loads the model, fetched from the mirror if need be.

    One process of a machine fetches at a time. Every hash is checked before the folder appears under its name, in one
    rename, and again where a file's size or time of change is another; what is damaged is fetched anew.

    Args:
        root: where the mirror lies.
        variant: the model.
        cache: folder for all models.
        limit: bytes that all models in it may take; those asked for longest ago go first. None for no limit.
        verify: check every hash, whatever sizes and times say.
        tell: told of the progress.

    Raises:
        WeightsError: if the mirror does not hold the model, a file of it is not what the manifest says, or the cache
            cannot be written.
        StoreError: if the mirror cannot be read.
    """
    manifest = read_manifest(root, variant)
    target = cache / variant.folder / manifest.digest[:16]
    seen = target.with_name(target.name + _SEEN)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / ".lock"):
            folder = target if target.is_dir() else target.with_name(f".{target.name}.arriving")
            missing = _missing(folder, manifest, {} if verify else _read(seen))
            if missing:
                _evict(cache, keep=target, room=None if limit is None else limit - manifest.size)
                check_space(cache, sum(file.size for file in missing), variant.hub_id, "CAPTION_CACHE")
                _fetch(root, variant, missing, folder, tell)
            if folder != target:
                os.replace(folder, target)
            seen.write_text(json.dumps(_states(target, manifest)))
    except OSError as error:
        raise WeightsError(
            f"CAPTION_CACHE is {str(cache)!r}, which cannot be written ({error.strerror or type(error).__name__}): "
            "make room, or name another folder"
        ) from error
    return target


def _missing(folder: Path, manifest: WeightsManifest, seen: dict[str, list[int]]) -> list[WeightFile]:
    """The files that are not there, or are damaged. Those that look as they did are not read."""
    states = _states(folder, manifest)
    return [
        file
        for file in manifest.files
        if file.path not in states
        or (states[file.path] != seen.get(file.path) and file_hash(folder / file.path) != file.sha256)
    ]


def _states(folder: Path, manifest: WeightsManifest) -> dict[str, list[int]]:
    """Size in bytes and time of change in ns of each file that is there."""
    found = {file.path: folder / file.path for file in manifest.files}
    stats = {path: file.stat() for path, file in found.items() if file.is_file()}
    return {path: [stat.st_size, stat.st_mtime_ns] for path, stat in stats.items()}


def _read(seen: Path) -> dict[str, list[int]]:
    try:
        return dict(json.loads(seen.read_text()))
    except (OSError, ValueError):  # then every file is checked
        return {}


def _fetch(root: Root, variant: Variant, wanted: list[WeightFile], folder: Path, tell: Callable[[str], None]) -> None:
    progress = Progress(f"{variant.hub_id} to this machine", sum(file.size for file in wanted), tell)
    for file in wanted:
        source, target = mirror_path(variant, file.path), folder / file.path
        arriving = target.with_name(f".{target.name}.arriving")
        arriving.parent.mkdir(parents=True, exist_ok=True)
        try:
            root.download(source, arriving)
        except FileNotFoundError as error:
            raise WeightsError(
                f"{root.address(source)} is missing, which the manifest names: materialize model_weights again"
            ) from error
        if (found := file_hash(arriving)) != file.sha256:
            arriving.unlink()
            raise WeightsError(
                f"{root.address(source)} has the SHA-256 {found}, but its manifest says {file.sha256}: the mirror is "
                "damaged; materialize model_weights again, which repairs it"
            )
        os.replace(arriving, target)
        progress.add(file.size)


def _evict(cache: Path, keep: Path, room: int | None) -> None:
    """Remove the models that were asked for longest ago, until the others take no more than ``room`` bytes."""
    if room is None:
        return
    others = [seen for seen in cache.rglob(f"*{_SEEN}") if _folder(seen) != keep]
    sizes = {seen: sum(file.stat().st_size for file in _folder(seen).rglob("*") if file.is_file()) for seen in others}
    for seen in sorted(others, key=lambda seen: seen.stat().st_mtime):
        if sum(sizes.values()) <= room or time.time() - seen.stat().st_mtime < IDLE_SECONDS:
            return
        seen.unlink()
        shutil.rmtree(_folder(seen))
        del sizes[seen]


def _folder(seen: Path) -> Path:
    """Of the model that a note is about."""
    return seen.with_name(seen.name.removesuffix(_SEEN))
