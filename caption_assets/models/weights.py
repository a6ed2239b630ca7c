"""The files that a model consists of, and the manifest that names them all."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from hashlib import file_digest, sha256
from pathlib import Path, PurePosixPath

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


def belongs(path: str) -> bool:
    """Whether a file of this name, relative to the model's folder, is one that a model consists of."""
    hidden = any(part.startswith(".") for part in PurePosixPath(path).parts)
    return not hidden and path != MANIFEST and any(fnmatch(path, pattern) for pattern in PATTERNS)


def describe(folder: Path, variant: Variant) -> WeightsManifest:
    """The manifest of the model in ``folder``.

    Raises:
        WeightsError: if there are no safetensors in it.
    """
    names = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    names = {name: path for name, path in sorted(names.items()) if belongs(name)}
    if not any(name.endswith(".safetensors") for name in names):
        raise WeightsError(f"there are no .safetensors files in {folder}: {variant.hub_id} cannot be loaded from it")
    found = tuple(WeightFile(name, path.stat().st_size, file_hash(path)) for name, path in names.items())
    return WeightsManifest(variant.hub_id, variant.revision, found)


def read_manifest(root: Root, variant: Variant) -> WeightsManifest:
    """The manifest of the model in the root's mirror.

    Raises:
        WeightsError: if the mirror does not hold the model.
    """
    path = mirror_path(variant, MANIFEST)
    try:
        return WeightsManifest.from_json(root.read(path).decode())
    except FileNotFoundError as error:
        raise WeightsError(
            f"{root.address(path)} does not exist: materialize model_weights before the captions"
        ) from error


def mirror_path(variant: Variant, name: str = "") -> str:
    """Where a model, or a file of it, lies below the root."""
    return f"{WEIGHTS}/{variant.folder}/{name}".rstrip("/")


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def check_space(folder: Path, size: int, what: str, setting: str) -> None:
    """Make sure that a disk has room.

    Args:
        folder: on that disk.
        size: bytes that are still to be written.
        what: is to be written, for the message.
        setting: variable that names the folder.

    Raises:
        WeightsError: if it has not.
    """
    if (free := shutil.disk_usage(folder).free) < size:
        raise WeightsError(
            f"{what} takes {size / 1e9:.1f} GB more, and the disk of {folder} has {free / 1e9:.1f} GB left: make room "
            f"there, or set {setting} to a folder on another disk"
        )
