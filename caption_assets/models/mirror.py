"""The mirror of a checkpoint's files in the root, from which every machine downloads them."""

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
from caption_assets.models.checkpoint_files import (
    ADAPTER_CONFIG,
    ADAPTER_CONFIG_ONLY,
    CONFIG,
    LANGUAGE_MODEL,
    AdapterFound,
)
from caption_assets.models.download import PARALLEL_DOWNLOADS, check_space, download, remaining_sizes
from caption_assets.models.hub import Hub
from caption_assets.models.lora import parse_adapter_config
from caption_assets.models.model_config import parse_config
from caption_assets.models.source import Folder, Source, find_source, read_file
from caption_assets.models.vllm_architectures import check_supported
from caption_assets.models.weights import (
    MANIFEST,
    WEIGHTS,
    ListedFile,
    Mismatch,
    OnProgress,
    WeightFile,
    WeightsError,
    WeightsManifest,
    ignore_progress,
)
from caption_assets.store.disk import reason_of
from caption_assets.store.root import Root

PARTIAL = ".arriving"
"""Folder of incomplete downloads."""
FIRST = frozenset({CONFIG, ADAPTER_CONFIG})
"""Files that are downloaded first, because they decide whether the model is usable."""


def publish(
    root: Root,
    checkpoint: Checkpoint,
    cache: Path,
    *,
    verify: bool = False,
    on_progress: OnProgress = ignore_progress,
    overrides: Mapping[str, Any] = MappingProxyType({}),
    mirror: Folder | None = None,
    root_setting: str = "CAPTION_ROOT",
) -> WeightsManifest:
    """Copy a checkpoint's files into the root's mirror, the manifest last, and return the manifest.

    Files that the mirror already holds are not uploaded again. An interrupted download is resumed by the next call.

    Args:
        root: the root with the mirror; a model in object storage is read with the root's credentials.
        checkpoint: the model or adapter.
        cache: local folder for downloads, if the root is not local.
        verify: read the whole mirror and verify all hashes. Without it, a file of the right size counts as present.
        on_progress: called with the progress of the download.
        overrides: vLLM's argument ``hf_overrides``: values that replace those of the model's ``config.json``.
        mirror: the mirror's folder in the root; None for ``mirror_of(root, checkpoint)``.
        root_setting: the setting or argument that chooses the root, for messages.

    Raises:
        WeightsError: if the download fails, a file does not match its hash, or the model needs remote code.
        StoreError: if the root cannot be written.
    """
    source, mirror = find_source(checkpoint, root.access), mirror or mirror_of(root, checkpoint)
    published = published_manifest(mirror, checkpoint)
    listed = _list(source, published)
    present = _present(mirror, listed, published, verify)
    missing = [file for file in listed if file.path not in present]
    if published and not missing and published.listed == listed:
        return published
    if published and published.listed != listed:
        root.remove(f"{mirror.path}/{MANIFEST}")  # without it, readers do not use the incomplete mirror

    def add_to_mirror(file: WeightFile, path: Path) -> None:
        if file.path == CONFIG:
            config = parse_config(path.read_bytes(), f"{source.address}/{file.path}")
            check_supported({**config, **overrides}, source.address, video=checkpoint.video)
        check_loadable(path, file, listed, source)
        _move(root, path, f"{mirror.path}/{file.path}")
        present[file.path] = file

    if missing and root.is_local:  # on the root's own disk, so that a file is moved by a rename
        parent = Path(root.full(mirror.path.split("/")[0]))
        with _download_folder(parent / PARTIAL / checkpoint.folder, root_setting) as folder:
            check_space(folder, sum(remaining_sizes(missing, folder)), root_setting)
            download(source, missing, folder, add_to_mirror, on_progress, first=FIRST)
    elif missing:
        with _download_folder(cache / PARTIAL / checkpoint.folder, "CAPTION_CACHE") as folder:
            check_space(folder, sum(sorted(remaining_sizes(missing, folder))[-PARALLEL_DOWNLOADS:]), "CAPTION_CACHE")
            download(source, missing, folder, add_to_mirror, on_progress, first=FIRST)
    for path in {file.path for file in published.files} - present.keys() if published else ():
        root.remove(f"{mirror.path}/{path}")
    manifest = WeightsManifest(checkpoint.hub_id, checkpoint.revision, tuple(present[file.path] for file in listed))
    root.write(f"{mirror.path}/{MANIFEST}", manifest.to_json().encode())
    return manifest


def mirror_of(root: Root, checkpoint: Checkpoint) -> Folder:
    """The checkpoint's folder in the root."""
    return Folder(
        root,
        f"{WEIGHTS}/{checkpoint.folder}",
        remedy="the mirror is damaged; to repair it, set CAPTION_VERIFY_WEIGHTS=true and materialize model_weights",
    )


def read_weights_manifest(root: Root, checkpoint: Checkpoint) -> WeightsManifest:
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
        raise WeightsError(f"cannot use {root.address(path)} ({error}): materialize model_weights again") from error


def content_digest(root: Root, checkpoint: Checkpoint) -> str | None:
    """Digest of the mirrored files of a checkpoint given by folder, whose name and revision do not identify its files.

    None for a checkpoint of the Hub, which id and commit identify.

    Raises:
        WeightsError: if the mirror does not hold it.
    """
    return None if checkpoint.path is None else read_weights_manifest(root, checkpoint).digest[:16]


def find_damage(root: Root, checkpoint: Checkpoint, manifest: WeightsManifest) -> dict[str, str]:
    """Read all files of the mirror, and return the reason for each that does not match the manifest, by path."""
    mirror = mirror_of(root, checkpoint)

    def reason(file: WeightFile) -> str | None:
        try:
            mirror.verify(file.listed)
        except WeightsError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(PARALLEL_DOWNLOADS) as pool:
        reasons = pool.map(reason, manifest.files)
        return {file.path: why for file, why in zip(manifest.files, reasons, strict=True) if why}


def published_manifest(mirror: Folder, checkpoint: Checkpoint) -> WeightsManifest | None:
    """The manifest in a mirror's folder, if there is a valid one of the checkpoint's revision."""
    try:
        manifest = WeightsManifest.from_json(mirror.root.read(f"{mirror.path}/{MANIFEST}").decode())
    except (FileNotFoundError, UnicodeDecodeError, WeightsError):
        return None
    return manifest if manifest.revision == checkpoint.revision else None


def _list(source: Hub | Folder, published: WeightsManifest | None) -> tuple[ListedFile, ...]:
    """The files that the mirror should contain. A pinned source is not listed again: it may be unreachable."""
    if published and source.pinned:
        return published.listed
    known = {(file.path, file.size): file for file in (published.listed if published else ())}
    try:
        listed = source.files()
    except AdapterFound as error:
        raise WeightsError(f"{error}: {_adapter_remedy(source)}") from None
    return tuple(file if file.verifiable else known.get((file.path, file.size), file) for file in listed)


def _adapter_remedy(source: Hub | Folder) -> str:
    """A remedy for a source with an adapter in place of a model: the settings that use the adapter."""
    model = "its base model"
    with suppress(WeightsError):
        adapter = replace(source, kind=ADAPTER_CONFIG_ONLY)
        for config in adapter.files():
            model = parse_adapter_config(read_file(adapter, config), source.address).base or model
    if source.kind is LANGUAGE_MODEL:
        return f"merge it into the model that it was trained on ({model}), and name the result"
    return f"set CAPTION_LORA to it, and CAPTION_MODEL to the model that it was trained on ({model})"


def _present(
    mirror: Folder, listed: tuple[ListedFile, ...], published: WeightsManifest | None, verify: bool
) -> dict[str, WeightFile]:
    """The listed files that the mirror already holds, by path.

    A file in the mirror's manifest is compared by size. Others, left by an interrupted call, are read and verified.
    """
    sizes = mirror.sizes()
    named = {file.listed: file for file in (published.files if published else ())}

    def find(file: ListedFile) -> WeightFile | None:
        if sizes.get(file.path) != file.size or not file.verifiable:
            return None
        if file in named and not verify:
            return named[file]
        with suppress(Mismatch):
            return mirror.verify(file)
        return None

    with ThreadPoolExecutor(PARALLEL_DOWNLOADS) as pool:
        return {file.path: file for file in pool.map(find, listed) if file}


@contextmanager
def _download_folder(folder: Path, setting: str) -> Iterator[Path]:
    """A folder for downloads, locked by one process at a time. It is kept if the block fails, to resume from."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            yield folder
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        reason = reason_of(error, folder)
        raise WeightsError(
            f"cannot write to {folder} ({reason}): free space, or choose another folder ({setting})"
        ) from error


def check_loadable(path: Path, file: WeightFile | ListedFile, listed: Sequence[ListedFile], source: Source) -> None:
    """Check that a file can be loaded: its source may hold a truncated file or a Git LFS pointer.

    Args:
        path: the file.
        file: its entry in the list.
        listed: all files of the checkpoint.
        source: where the file is from, for messages.

    Raises:
        WeightsError: if a weight file is invalid, or an index names a missing file.
    """
    if file.path == ADAPTER_CONFIG:
        parse_adapter_config(path.read_bytes(), f"{source.address}/{file.path}")
    if file.path.endswith(".safetensors"):
        try:
            with safe_open(path, framework="numpy"):
                pass
        except SafetensorError as error:
            raise WeightsError(f"cannot load {source.address}/{file.path} ({error}): {source.remedy}") from error
    if file.path.endswith(".safetensors.index.json"):
        folder = PurePosixPath(file.path).parent
        try:
            named = {str(folder / shard) for shard in json.loads(path.read_bytes())["weight_map"].values()}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise WeightsError(f"{source.address}/{file.path} is not a weights index: {source.remedy}") from error
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
