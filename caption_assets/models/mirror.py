"""The mirror of a checkpoint's files in the root, from which every machine fetches them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from filelock import FileLock
from safetensors import SafetensorError, safe_open

from caption_assets.models.checkpoint import Checkpoint
from caption_assets.models.download import STREAMS, arrive, check_space, to_come
from caption_assets.models.hub import Hub
from caption_assets.models.lora import parse_adapter_config
from caption_assets.models.parts import ADAPTER_CONFIG, ANNOUNCEMENT, CONFIG, AdapterFound
from caption_assets.models.served import check_served, parse_config
from caption_assets.models.source import Folder, Source, find_source, read_file
from caption_assets.models.weights import (
    MANIFEST,
    WEIGHTS,
    ListedFile,
    Mismatch,
    OnProgress,
    WeightFile,
    WeightsError,
    WeightsManifest,
    silent,
)
from caption_assets.store.disk import reason_of
from caption_assets.store.root import Root

ARRIVING = ".arriving"
"""Folder of files on their way, beside those that have arrived."""
FIRST = frozenset({CONFIG, ADAPTER_CONFIG})
"""Files that decide whether the others are wanted."""


def publish(
    root: Root,
    checkpoint: Checkpoint,
    cache: Path,
    *,
    verify: bool = False,
    on_progress: OnProgress = silent,
    overrides: Mapping[str, Any] = MappingProxyType({}),
) -> WeightsManifest:
    """Bring a checkpoint's files into the root's mirror, the manifest last, and return it.

    What the mirror has already is not sent again. What an interrupted call has fetched is kept for the next one.

    Args:
        root: which holds the mirror; a model in object storage is read with the root's credentials.
        checkpoint: the model or adapter.
        cache: folder on this machine for files on their way, if the root is not on its disk.
        verify: read the whole mirror and compare every hash. Without it a file counts as present by its size.
        on_progress: called with the progress of the download.
        overrides: vLLM's argument ``hf_overrides``: values of a model's ``config.json`` that the user replaces.

    Raises:
        WeightsError: if it cannot be fetched, is not what it should be, or is a model that needs remote code.
        StoreError: if the root cannot be written.
    """
    source, mirror, published = (
        find_source(checkpoint, root.access),
        mirror_of(root, checkpoint),
        _published(root, checkpoint),
    )
    listed = _list(source, published)
    standing = _standing(mirror, listed, published, verify)
    missing = [file for file in listed if file.path not in standing]
    if published and not missing and published.listed == listed:
        return published
    if published and published.listed != listed:
        root.remove(f"{mirror.path}/{MANIFEST}")  # until the last file is there it is no mirror

    def keep(file: WeightFile, path: Path) -> None:
        if file.path == CONFIG:
            config = parse_config(path.read_bytes(), f"{source.address}/{file.path}")
            check_served({**config, **overrides}, source.address)
        _check_loadable(path, file, listed, source)
        _move(root, path, f"{mirror.path}/{file.path}")
        standing[file.path] = file

    if missing and root.is_local:  # on the root's own disk, where a file gets to its place by a rename
        with _arrivals(Path(root.full(WEIGHTS)) / ARRIVING / checkpoint.folder, "CAPTION_ROOT") as folder:
            check_space(folder, sum(to_come(missing, folder)), "CAPTION_ROOT")
            arrive(source, missing, folder, keep, on_progress, first=FIRST)
    elif missing:
        with _arrivals(cache / ARRIVING / checkpoint.folder, "CAPTION_CACHE") as folder:
            check_space(folder, sum(sorted(to_come(missing, folder))[-STREAMS:]), "CAPTION_CACHE")
            arrive(source, missing, folder, keep, on_progress, first=FIRST)
    for path in {file.path for file in published.files} - standing.keys() if published else ():
        root.remove(f"{mirror.path}/{path}")
    manifest = WeightsManifest(checkpoint.hub_id, checkpoint.revision, tuple(standing[file.path] for file in listed))
    root.write(f"{mirror.path}/{MANIFEST}", manifest.to_json().encode())
    return manifest


def mirror_of(root: Root, checkpoint: Checkpoint) -> Folder:
    """The checkpoint's folder in the root."""
    return Folder(
        root,
        f"{WEIGHTS}/{checkpoint.folder}",
        remedy="the mirror is damaged; set CAPTION_VERIFY_WEIGHTS=true and materialize model_weights, which mends it",
    )


def read_manifest(root: Root, checkpoint: Checkpoint) -> WeightsManifest:
    """The manifest of a checkpoint in the root's mirror.

    Raises:
        WeightsError: if the mirror does not hold it, or the manifest cannot be read.
    """
    path = f"{WEIGHTS}/{checkpoint.folder}/{MANIFEST}"
    try:
        return WeightsManifest.from_json(root.read(path).decode())
    except FileNotFoundError as error:
        raise WeightsError(
            f"{root.address(path)} does not exist: materialize model_weights before the captions"
        ) from error
    except (UnicodeDecodeError, WeightsError) as error:
        raise WeightsError(f"{root.address(path)} cannot be used ({error}): materialize model_weights again") from error


def content_of(root: Root, checkpoint: Checkpoint) -> str | None:
    """Digest of a checkpoint's files in the root's mirror, for one by folder: another may have its name and revision.

    None for a checkpoint of the Hub, which its id and commit identify.

    Raises:
        WeightsError: if the mirror does not hold it.
    """
    return None if checkpoint.path is None else read_manifest(root, checkpoint).digest[:16]


def find_damage(root: Root, checkpoint: Checkpoint, manifest: WeightsManifest) -> dict[str, str]:
    """Read all files of the mirror, and return those that are not what its manifest says: path and reason."""
    mirror = mirror_of(root, checkpoint)

    def reason(file: WeightFile) -> str | None:
        try:
            mirror.examine(file.listed)
        except WeightsError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(STREAMS) as pool:
        reasons = pool.map(reason, manifest.files)
        return {file.path: why for file, why in zip(manifest.files, reasons, strict=True) if why}


def _published(root: Root, checkpoint: Checkpoint) -> WeightsManifest | None:
    """The manifest, if there is one that can be used."""
    try:
        return read_manifest(root, checkpoint)
    except WeightsError:
        return None


def _list(source: Hub | Folder, published: WeightsManifest | None) -> tuple[ListedFile, ...]:
    """The files that the mirror should hold. A pinned source need not be asked again: it may be out of reach."""
    if published and source.pinned:
        return published.listed
    known = {(file.path, file.size): file for file in (published.listed if published else ())}
    try:
        listed = source.files()
    except AdapterFound as error:
        raise WeightsError(f"{error}: {_instead_of_an_adapter(source)}") from None
    return tuple(file if file.verifiable else known.get((file.path, file.size), file) for file in listed)


def _instead_of_an_adapter(source: Hub | Folder) -> str:
    """How to use the adapter in a source that should hold a model."""
    model = "its base model"
    with suppress(WeightsError):
        adapter = replace(source, layout=ANNOUNCEMENT)
        for config in adapter.files():
            model = parse_adapter_config(read_file(adapter, config), source.address).base or model
    return f"set CAPTION_LORA to it, and CAPTION_MODEL to the model that it was trained on ({model})"


def _standing(
    mirror: Folder, listed: tuple[ListedFile, ...], published: WeightsManifest | None, verify: bool
) -> dict[str, WeightFile]:
    """The listed files that the mirror holds already, by path.

    What its manifest names is there if it has the right size. The rest, left by a call that was broken off, is read.
    """
    sizes = mirror.sizes()
    named = {file.listed: file for file in (published.files if published else ())}

    def find(file: ListedFile) -> WeightFile | None:
        if sizes.get(file.path) != file.size or not file.verifiable:
            return None
        if file in named and not verify:
            return named[file]
        with suppress(Mismatch):
            return mirror.examine(file)
        return None

    with ThreadPoolExecutor(STREAMS) as pool:
        return {file.path: file for file in pool.map(find, listed) if file}


@contextmanager
def _arrivals(folder: Path, setting: str) -> Iterator[Path]:
    """A folder for files on their way, for one process at a time; it stays if the block fails."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            yield folder
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        reason = reason_of(error, folder)
        raise WeightsError(
            f"cannot write to {folder} ({reason}): free space, or name another folder ({setting})"
        ) from error


def _check_loadable(path: Path, file: WeightFile, listed: Sequence[ListedFile], source: Source) -> None:
    """What a source passes off as whole may still be cut off, or a pointer that stands for a file (Git LFS).

    Raises:
        WeightsError: if a file of weights is no such file, or an index names one that is not there.
    """
    if file.path == ADAPTER_CONFIG:
        parse_adapter_config(path.read_bytes(), f"{source.address}/{file.path}")
    if file.path.endswith(".safetensors"):
        try:
            with safe_open(path, framework="numpy"):
                pass
        except SafetensorError as error:
            raise WeightsError(f"{source.address}/{file.path} cannot be loaded ({error}): {source.remedy}") from error
    if file.path.endswith(".safetensors.index.json"):
        folder = PurePosixPath(file.path).parent
        try:
            named = {str(folder / shard) for shard in json.loads(path.read_bytes())["weight_map"].values()}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise WeightsError(f"{source.address}/{file.path} is no index of weights: {source.remedy}") from error
        if absent := sorted(named - {other.path for other in listed}):
            raise WeightsError(
                f"{source.address}/{absent[0]} does not exist, though {file.path} names it: {source.remedy}"
            )


def _move(root: Root, file: Path, path: str) -> None:
    if root.is_local:
        target = Path(root.full(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, target)
    else:
        root.upload(path, file)
        file.unlink()
