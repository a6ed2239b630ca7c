"""A model's files on their way from hub, folder or package to the mirror in the root."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from hashlib import file_digest
from importlib.resources import as_file, files
from pathlib import Path

from caption_assets.models import hub
from caption_assets.models.progress import Progress
from caption_assets.models.variants import Variant
from caption_assets.models.weights import (
    MANIFEST,
    WeightFile,
    WeightsError,
    WeightsManifest,
    belongs,
    check_space,
    describe,
    mirror_path,
    read_manifest,
)
from caption_assets.store.failure import clear_errors
from caption_assets.store.root import Root


def publish(root: Root, variant: Variant, work: Path, tell: Callable[[str], None] = lambda _: None) -> WeightsManifest:
    """Bring a model's files into the root's mirror, the manifest last, and return it.

    Of a mirror that is there every hash is checked, and what is missing or damaged brought anew.

    Args:
        root: where the mirror lies.
        variant: the model.
        work: folder for what is under way; an interrupted download is continued there.
        tell: told of the progress.

    Raises:
        WeightsError: if the model cannot be had where it comes from.
        StoreError: if the mirror cannot be written.
    """
    if variant.from_hub and root.exists(mirror_path(variant, MANIFEST)):
        manifest = read_manifest(root, variant)  # the files of a pinned revision never change
        if damaged := _damaged(root, variant, manifest, tell):
            with _original(variant, work, tell, {file.path for file in damaged}) as folder:
                _upload(root, variant, folder, damaged, tell)
        return manifest
    with _original(variant, work, tell) as folder:
        manifest = describe(folder, variant)
        if root.exists(mirror_path(variant, MANIFEST)) and read_manifest(root, variant) != manifest:
            root.remove(mirror_path(variant, MANIFEST))  # until the last file is there it is no mirror
        _upload(root, variant, folder, _damaged(root, variant, manifest, tell), tell)
        if not root.exists(mirror_path(variant, MANIFEST)):
            root.write(mirror_path(variant, MANIFEST), manifest.to_json().encode())
    return manifest


def _damaged(root: Root, variant: Variant, manifest: WeightsManifest, tell: Callable[[str], None]) -> list[WeightFile]:
    """The files that the mirror lacks, or has with other bytes."""
    progress = Progress(f"checking the mirror of {variant.hub_id}", manifest.size, tell)
    damaged = []
    for file in manifest.files:
        if _mirrored_hash(root, mirror_path(variant, file.path)) != file.sha256:
            damaged.append(file)
        progress.add(file.size)
    return damaged


def _mirrored_hash(root: Root, path: str) -> str | None:
    """SHA-256 of an object; None if there is none."""
    try:
        with clear_errors(f"cannot read {root.address(path)}"), root.fs.open(root.full(path), "rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _upload(
    root: Root, variant: Variant, folder: Path, wanted: Collection[WeightFile], tell: Callable[[str], None]
) -> None:
    size = sum(file.size for file in wanted)
    if root.is_local and wanted:
        Path(root.path).mkdir(exist_ok=True)
        check_space(Path(root.path), size, f"the mirror of {variant.hub_id}", "CAPTION_ROOT")
    progress = Progress(f"{variant.hub_id} to the mirror", size, tell)
    for file in wanted:
        root.upload(mirror_path(variant, file.path), folder / file.path)
        progress.add(file.size)


@contextmanager
def _original(
    variant: Variant, work: Path, tell: Callable[[str], None], only: Collection[str] | None = None
) -> Iterator[Path]:
    """The model's files where they come from: the package, a folder, or the hub at the pinned revision."""
    if variant.bundled:
        with as_file(files("caption_assets.sample") / "model") as folder:
            yield folder
    elif variant.path is not None and "://" not in variant.path:
        yield Path(variant.path)
    else:
        folder = work / variant.folder
        if variant.path is None:
            hub.fetch(variant, folder, tell, only)
        else:
            _fetch_folder(Root.open(variant.path), folder, only)
        yield folder
        shutil.rmtree(folder)  # all of it is in the mirror; what stops before this line goes on from there


def _fetch_folder(source: Root, folder: Path, only: Collection[str] | None) -> None:
    """Bring the files of a model out of object storage; there is no telling beforehand whether they are whole."""
    with clear_errors(f"cannot list {source.url}"):
        found = source.fs.find(source.path, detail=True)
    for name, entry in found.items():
        path = str(name).removeprefix(source.path).lstrip("/")
        target = folder / path
        if not belongs(path) or (only is not None and path not in only):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        check_space(folder, int(entry["size"]), source.url, "CAPTION_CACHE")
        source.download(path, target)
    if not found:
        raise WeightsError(f"there is nothing in {source.url}: correct CAPTION_MODEL")
