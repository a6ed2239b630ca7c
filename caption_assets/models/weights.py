"""The files of a checkpoint, each with its size and hash, and the manifest that names them all."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha1, sha256
from pathlib import PurePosixPath
from typing import Any, Protocol

from caption_assets.errors import CaptionAssetsError

WEIGHTS = "weights"
MANIFEST = "weights-manifest.json"
CHUNK_BYTES = 16 << 20
"""Held in memory at a time of a file that is read."""

OnProgress = Callable[[int, int], None]
"""Called with the bytes downloaded so far and the bytes of all files; by any thread."""


class WeightsError(CaptionAssetsError):
    """Weights that are missing or not what their manifest says."""


class Mismatch(WeightsError):
    """A file whose content is not the one that was listed."""


class Readable(Protocol):
    """What bytes are read from."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none at the end."""
        ...


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One file of a model."""

    path: str
    """Relative to the model's folder, with forward slashes."""
    size: int
    """Bytes."""
    sha256: str
    """Hexadecimal digest of its content."""

    def __post_init__(self) -> None:
        _check_path(self.path)

    @property
    def listed(self) -> ListedFile:
        """As a source would list it."""
        return ListedFile(self.path, self.size, self.sha256)


@dataclass(frozen=True, slots=True)
class ListedFile:
    """One file of a model as its source announces it."""

    path: str
    """Relative to the model's folder, with forward slashes."""
    size: int
    """Bytes."""
    sha256: str | None = None
    """Hexadecimal digest of its content, where the source knows it."""
    git_blob: str | None = None
    """Git's hash of its content, by which the Hub knows a small file."""

    def __post_init__(self) -> None:
        _check_path(self.path)

    @property
    def verifiable(self) -> bool:
        """Whether its content can be told from another of the same size."""
        return bool(self.sha256 or self.git_blob)

    def examine(self, content: Readable) -> WeightFile:
        """Read a file to its end, and return it with its hash.

        Raises:
            Mismatch: if it is another than this one.
        """
        size, sha, blob = 0, sha256(), sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        while chunk := content.read(CHUNK_BYTES):
            size += len(chunk)
            sha.update(chunk)
            if self.git_blob:
                blob.update(chunk)
        found = WeightFile(self.path, size, sha.hexdigest())
        if size != self.size:
            raise Mismatch(f"it has {size} bytes, but should have {self.size}")
        if self.sha256 and self.sha256 != found.sha256:
            raise Mismatch(f"it has the SHA-256 {found.sha256}, but should have {self.sha256}")
        if self.git_blob and self.git_blob != blob.hexdigest():
            raise Mismatch(f"it has git's hash {blob.hexdigest()}, but should have {self.git_blob}")
        return found


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
    def listed(self) -> tuple[ListedFile, ...]:
        """Its files as a source would list them."""
        return tuple(file.listed for file in self.files)

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
            WeightsError: if it is none, or a file's path leads out of the model's folder.
        """
        try:
            parts: dict[str, Any] = json.loads(text)
            found = tuple(WeightFile(**file) for file in parts["files"])
            return cls(parts["hub_id"], parts["revision"], found)
        except (ValueError, TypeError, KeyError) as error:
            raise WeightsError(f"it is no manifest of weights ({type(error).__name__}: {error})") from error


def joint_version(manifests: Sequence[WeightsManifest]) -> str:
    """The data version of a model, with its adapter if it has one: 16 hex digits."""
    digests = [manifest.digest for manifest in manifests]
    return (digests[0] if len(digests) == 1 else sha256("".join(digests).encode()).hexdigest())[:16]


def in_words(count: int) -> str:
    """Bytes as a person reads them: ``16.6 GB``."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def silent(done: int, total: int) -> None:
    """Tell nobody of the progress."""


def _check_path(text: str) -> None:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts:
        raise WeightsError(f"a model's files name {text!r}, which is outside the model's folder")
