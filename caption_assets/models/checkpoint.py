"""Checkpoints: the weights of a model or of a LoRA adapter at one revision, with their source."""

from __future__ import annotations

import os.path
import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import ClassVar

from caption_assets.models.checkpoint_files import ADAPTER, LANGUAGE_MODEL, MODEL, CheckpointKind

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
REVISION = re.compile(r"(?!\.+\Z)[\w.-]+")
"""A revision. It is a folder's name in the mirror, so dots alone would lead out of it."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights at one revision."""

    hub_id: str
    """Organization and name on the Hub; for a folder or the embedded model, a name of the same form."""
    revision: str
    """Commit of all files; for a folder, a word chosen by the user; for the sample model, the hash of its weights."""
    bundled: bool = False
    """Whether the weights are part of the package."""
    path: str | None = None
    """Source folder in place of the Hub: local, or a URL of object storage."""
    video: bool = True
    """Whether a model is shown videos; False for a language model, which answers stages without video."""

    prefix: ClassVar[str] = ""
    """Prefix of the folder's name in the mirror: models and adapters have different ones."""

    @property
    def kind(self) -> CheckpointKind:
        """The kind of its files."""
        return MODEL if self.video else LANGUAGE_MODEL

    @property
    def folder(self) -> str:
        """Folder of the mirror below ``weights/`` in the root: ``<org>--<name>/<revision>``.

        For a model given by folder the name ends with a digest of its path, so that folders of the same name have
        separate mirrors.
        """
        return f"{self.prefix}{self.hub_id.replace('/', '--')}{_path_suffix(self.path)}/{self.revision}"


@dataclass(frozen=True, slots=True)
class Lora(Checkpoint):
    """A LoRA adapter that is applied to the model."""

    prefix: ClassVar[str] = "lora--"

    @property
    def kind(self) -> CheckpointKind:
        """The kind of its files."""
        return ADAPTER


def _path_suffix(path: str | None) -> str:
    if path is None:
        return ""
    whole = path if path.startswith("s3://") else os.path.abspath(path)
    return f"-{sha256(whole.encode()).hexdigest()[:8]}"


def is_folder(name: str) -> bool:
    """Whether a setting's value is a folder, rather than a Hub id or a key."""
    return name.startswith(("/", "./", "../", "~", "s3://"))


def as_folder(name: str) -> tuple[str, str]:
    """The path of a folder given by a setting, and a name for it in the form of a Hub id."""
    path = name.rstrip("/") if name.startswith("s3://") else str(Path(name).expanduser())
    return path, f"local/{PurePosixPath(path).name}"
