"""The weight files of a checkpoint, with sizes and hashes, and the manifest that lists them."""

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
"""Size of the chunks in which files are read."""

OnProgress = Callable[[int, int], None]
"""A callback with the number of bytes downloaded so far, and of all files. Any thread may call it."""


class WeightsError(CaptionAssetsError):
    """Weights that are missing, or do not match their manifest."""


class Mismatch(WeightsError):
    """A file whose content does not match its listed size or hash."""


class Readable(Protocol):
    """A readable binary file."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; empty at the end."""
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
        """The file as its source lists it."""
        return ListedFile(self.path, self.size, self.sha256)


@dataclass(frozen=True, slots=True)
class ListedFile:
    """One file of a model as its source lists it."""

    path: str
    """Relative to the model's folder, with forward slashes."""
    size: int
    """Bytes."""
    sha256: str | None = None
    """Hexadecimal digest of its content, if the source has it."""
    git_blob: str | None = None
    """Git's hash of its content; the Hub has it for small files."""

    def __post_init__(self) -> None:
        _check_path(self.path)

    @property
    def verifiable(self) -> bool:
        """Whether there is a hash to compare its content with."""
        return bool(self.sha256 or self.git_blob)

    def verify(self, content: Readable) -> WeightFile:
        """Read a file to its end, compare it with this listing, and return it with its hash.

        Raises:
            Mismatch: if size or hash differ.
        """
        size, sha, blob = 0, sha256(), sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        while chunk := content.read(CHUNK_BYTES):
            size += len(chunk)
            sha.update(chunk)
            if self.git_blob:
                blob.update(chunk)
        found = WeightFile(self.path, size, sha.hexdigest())
        if size != self.size:
            raise Mismatch(f"its size is {size} bytes instead of {self.size}")
        if self.sha256 and self.sha256 != found.sha256:
            raise Mismatch(f"its SHA-256 is {found.sha256} instead of {self.sha256}")
        if self.git_blob and self.git_blob != blob.hexdigest():
            raise Mismatch(f"its Git hash is {blob.hexdigest()} instead of {self.git_blob}")
        return found


@dataclass(frozen=True, slots=True)
class WeightsManifest:
    """All files of one revision of a model. It is written last: its presence means that the files are complete."""

    hub_id: str
    revision: str
    files: tuple[WeightFile, ...]
    """Sorted by path."""

    @property
    def size(self) -> int:
        """Total size of the files, in bytes."""
        return sum(file.size for file in self.files)

    @property
    def listed(self) -> tuple[ListedFile, ...]:
        """The files as a source lists them."""
        return tuple(file.listed for file in self.files)

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest: the data version of the weights."""
        return sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """The manifest as canonical JSON."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> WeightsManifest:
        """Parse the output of ``to_json``.

        Raises:
            WeightsError: if it is invalid, or a file's path leads out of the model's folder.
        """
        try:
            parts: dict[str, Any] = json.loads(text)
            found = tuple(WeightFile(**file) for file in parts["files"])
            return cls(parts["hub_id"], parts["revision"], found)
        except (ValueError, TypeError, KeyError) as error:
            raise WeightsError(f"invalid weights manifest ({type(error).__name__}: {error})") from error


def joint_version(manifests: Sequence[WeightsManifest]) -> str:
    """The data version of the video model and its adapter, if it has one: 16 hex digits.

    Language models are no part of it, so that another one does not make the stages of the video model stale. Their
    revisions are in the code versions of their stages.
    """
    digests = [manifest.digest for manifest in manifests]
    return (digests[0] if len(digests) == 1 else sha256("".join(digests).encode()).hexdigest())[:16]


def format_size(count: int) -> str:
    """A number of bytes for messages: ``16.6 GB``."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def ignore_progress(done: int, total: int) -> None:
    """Report no progress."""


def _check_path(text: str) -> None:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts:
        raise WeightsError(f"the model's file list names {text!r}, which is outside the model's folder")
