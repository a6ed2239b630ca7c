"""A checkpoint: the weights of a model or of a LoRA adapter at one revision, and where they come from."""

from __future__ import annotations

import os.path
import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import ClassVar

from caption_assets.models.parts import ADAPTER, MODEL, Layout

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
REVISION = re.compile(r"(?!\.+\Z)[\w.-]+")
"""It names a folder of the mirror, which dots alone would leave."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights at one revision."""

    hub_id: str
    """Organisation and name on the model hub; for a folder or the embedded model, a name of the same form."""
    revision: str
    """Commit of all files. For a folder, the user's word for it; for the sample model, the hash of its weights."""
    bundled: bool = False
    """Whether the weights are part of the package, so that no hub is asked."""
    path: str | None = None
    """Folder that the weights are copied from instead of the Hub: local, or a URL of object storage."""

    layout: ClassVar[Layout] = MODEL
    """Which files it consists of."""
    prefix: ClassVar[str] = ""
    """Begins the name of its mirror, so that it lies apart from that of another kind."""

    @property
    def folder(self) -> str:
        """Folder of the mirror below ``weights/`` in the root: ``<org>--<name>/<revision>``.

        Of a model by folder the name ends with a digest of the path: another folder of its name has its own mirror.
        """
        return f"{self.prefix}{self.hub_id.replace('/', '--')}{_path_suffix(self.path)}/{self.revision}"


@dataclass(frozen=True, slots=True)
class Lora(Checkpoint):
    """A LoRA adapter that is applied to the model."""

    layout: ClassVar[Layout] = ADAPTER
    prefix: ClassVar[str] = "lora--"


def _path_suffix(path: str | None) -> str:
    if path is None:
        return ""
    whole = path if path.startswith("s3://") else os.path.abspath(path)
    return f"-{sha256(whole.encode()).hexdigest()[:8]}"


def is_folder(name: str) -> bool:
    """Whether a setting names a folder, and not a Hub id or a key."""
    return name.startswith(("/", "./", "../", "~", "s3://"))


def as_folder(name: str) -> tuple[str, str]:
    """The path of a folder that a setting names, and a name for it of the form of a Hub id."""
    path = name.rstrip("/") if name.startswith("s3://") else str(Path(name).expanduser())
    return path, f"local/{PurePosixPath(path).name}"
