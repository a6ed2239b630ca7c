"""A model's files on their way from hub or package to the mirror in the root, and from there to the engine's disk."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import file_digest, sha256
from importlib.resources import as_file, files
from pathlib import Path, PurePosixPath

from huggingface_hub import snapshot_download

from caption_assets.errors import CaptionAssetsError
from caption_assets.models.variants import Variant
from caption_assets.store.root import Root

WEIGHTS = "weights"
MANIFEST = "weights-manifest.json"
PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.jinja")
"""Files a model consists of: weights, configuration, tokenizer, processor. No code and no pickles are fetched."""


class WeightsError(CaptionAssetsError):
    """Weights that are missing or not what their manifest says."""


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One file of a model."""

    path: str
    """Relative to the model's folder, with forward slashes."""
    size: int
    """Bytes."""
    sha256: str
    """Hexadecimal digest of its content."""


@dataclass(frozen=True, slots=True)
class WeightsManifest:
    """Every file of one revision of a model. Written after the files, so that its presence means they are whole."""

    hub_id: str
    revision: str
    files: tuple[WeightFile, ...]
    """Sorted by path."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def digest(self) -> str:
        """SHA-256 over the manifest: the data version of the weights."""
        return sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """The manifest as text, the same for the same files."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> WeightsManifest:
        """The manifest that ``to_json`` wrote.

        Raises:
            WeightsError: if a file's path leads out of the model's folder.
        """
        parts = json.loads(text)
        found = tuple(WeightFile(**file) for file in parts["files"])
        for file in found:
            path = PurePosixPath(file.path)
            if path.is_absolute() or ".." in path.parts:
                raise WeightsError(f"the weights manifest names {file.path!r}, which is outside the model's folder")
        return cls(parts["hub_id"], parts["revision"], found)


def publish(root: Root, variant: Variant) -> WeightsManifest:
    """Bring a model's files into the root's mirror, the manifest last, and return it.

    A mirror that is already whole is left alone.
    """
    path = f"{WEIGHTS}/{variant.folder}"
    whole = root.exists(f"{path}/{MANIFEST}")
    if whole and not variant.bundled and variant.path is None:
        return read_manifest(root, variant)  # the files of a pinned revision never change
    with _original(variant) as folder:
        manifest = describe(folder, variant)
        if whole and read_manifest(root, variant) == manifest:
            return manifest
        if whole:
            root.remove(f"{path}/{MANIFEST}")  # until the last file is there it is no mirror
        for file in manifest.files:
            root.upload(f"{path}/{file.path}", folder / file.path)
        root.write(f"{path}/{MANIFEST}", manifest.to_json().encode())
    return manifest


def describe(folder: Path, variant: Variant) -> WeightsManifest:
    """The manifest of the model in ``folder``.

    Raises:
        WeightsError: if there are no safetensors in it.
    """
    paths = sorted({path for pattern in PATTERNS for path in folder.rglob(pattern)} - {folder / MANIFEST})
    if not any(path.suffix == ".safetensors" for path in paths):
        raise WeightsError(f"there are no .safetensors files in {folder}: {variant.hub_id} cannot be loaded from it")
    found = tuple(WeightFile(path.relative_to(folder).as_posix(), path.stat().st_size, _hash(path)) for path in paths)
    return WeightsManifest(variant.hub_id, variant.revision, found)


def read_manifest(root: Root, variant: Variant) -> WeightsManifest:
    """The manifest of the model in the root's mirror.

    Raises:
        WeightsError: if the mirror does not hold the model.
    """
    path = f"{WEIGHTS}/{variant.folder}/{MANIFEST}"
    try:
        return WeightsManifest.from_json(root.read(path).decode())
    except FileNotFoundError as error:
        raise WeightsError(
            f"{root.address(path)} does not exist: materialize model_weights before the captions"
        ) from error


def ensure_local(root: Root, variant: Variant, cache: Path) -> Path:
    """The folder on this machine from which the engine loads the model, fetched from the mirror if need be.

    Every hash is checked before the folder appears under its name, in one rename.

    Raises:
        WeightsError: if the mirror does not hold the model or a file of it is not what the manifest says.
    """
    manifest = read_manifest(root, variant)
    target = cache / variant.folder / manifest.digest[:16]
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"CAPTION_CACHE is {str(cache)!r}, which cannot be written ({error})") from error
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".arriving-") as arriving:
        folder = Path(arriving) / "model"
        for file in manifest.files:
            _download(root, f"{WEIGHTS}/{variant.folder}/{file.path}", folder / file.path, file.sha256)
        try:
            os.replace(folder, target)
        except OSError:
            if not target.is_dir():  # else another process of this node brought the same files first
                raise
    return target


@contextmanager
def _original(variant: Variant) -> Iterator[Path]:
    """The model's files where they come from: the package, a folder, or the hub at the pinned revision."""
    if variant.bundled:
        with as_file(files("caption_assets.sample") / "model") as folder:
            yield folder
        return
    if variant.path is not None:
        yield Path(variant.path)
        return
    with tempfile.TemporaryDirectory(prefix="caption-weights-") as folder_name:
        yield Path(
            snapshot_download(
                variant.hub_id, revision=variant.revision, allow_patterns=list(PATTERNS), local_dir=folder_name
            )
        )


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _download(root: Root, source: str, target: Path, digest: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    root.download(source, target)
    if (found := _hash(target)) != digest:
        raise WeightsError(
            f"{root.address(source)} has the SHA-256 {found}, but its manifest says {digest}: the mirror is damaged; "
            "delete that folder and materialize model_weights again"
        )
