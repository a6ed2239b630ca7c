"""Tokenizers of trainers: resolving the setting, and the local copy of their files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

from caption_assets.models.cache import CacheConfig, ensure_local
from caption_assets.models.checkpoint import HUB_ID, REVISION, Checkpoint, as_folder, is_folder
from caption_assets.models.checkpoint_files import CheckpointKind
from caption_assets.models.mirror import publish
from caption_assets.models.variants import UnknownModel
from caption_assets.models.weights import WeightsError
from caption_assets.store.root import Root

TOKENIZER = "tokenizer.json"
"""The whole tokenizer, as the library ``tokenizers`` writes it."""
TOKENIZER_CONFIG = "tokenizer_config.json"
"""Its maximum length, as transformers writes it; optional."""
REVISION_SETTING = "CAPTION_EXPORT_TOKENIZER_REVISION"
OF_FOLDER = "folder"
"""Revision of a tokenizer given by folder, whose files are compared on each use."""
_REMEDY = "write it with AutoTokenizer.from_pretrained(…).save_pretrained(…) of transformers, and give that folder"


@dataclass(frozen=True, slots=True)
class TokenizerCheckpoint(Checkpoint):
    """The files of a tokenizer."""

    subfolder: str = ""
    """Its folder in the repository; empty for the top."""

    prefix: ClassVar[str] = "tokenizer--"

    @property
    def kind(self) -> CheckpointKind:
        """The kind of its files."""
        return CheckpointKind("tokenizer", REVISION_SETTING, self._select, self._check)

    @property
    def folder(self) -> str:
        """Folder of the mirror below ``weights/`` in the root. Tokenizers of one repository have separate ones."""
        name, _, revision = super(TokenizerCheckpoint, self).folder.rpartition("/")
        return f"{name}{'--' if self.subfolder else ''}{self.subfolder.replace('/', '--')}/{revision}"

    def _select(self, paths: Iterable[str]) -> list[str]:
        wanted = {str(PurePosixPath(self.subfolder, name)) for name in (TOKENIZER, TOKENIZER_CONFIG)}
        return sorted(wanted & set(paths))

    def _check(self, paths: Sequence[str], address: str) -> None:
        path = str(PurePosixPath(self.subfolder, TOKENIZER))
        if path in paths:
            return
        if not paths:
            raise WeightsError(f"{address} does not exist, or is empty: check its name")
        folders = sorted(str(PurePosixPath(path).parent) for path in paths if PurePosixPath(path).name == TOKENIZER)
        remedy = (
            f"give one of its folders, as in {self.hub_id}/{folders[0]} ({', '.join(folders)})" if folders else _REMEDY
        )
        raise WeightsError(f"{address} has no {path}: {remedy}")


def find_tokenizer(name: str, revision: str | None) -> TokenizerCheckpoint:
    """The tokenizer that the settings name.

    Args:
        name: a Hub id (``org/name`` or ``org/name/folder``) or a folder (``/…``, ``./…``, ``~/…`` or ``s3://…``).
        revision: commit of a tokenizer given by Hub id.

    Raises:
        UnknownModel: if the name is neither, or the revision is missing.
    """
    if is_folder(name):
        path, hub_id = as_folder(name)
        return TokenizerCheckpoint(hub_id, OF_FOLDER, path=path)
    parts = name.split("/")
    hub_id, subfolder = "/".join(parts[:2]), "/".join(parts[2:])
    if not HUB_ID.fullmatch(hub_id) or not all(REVISION.fullmatch(part) for part in parts[2:]):
        raise UnknownModel(
            f"unknown tokenizer {name!r}: give a Hub id (org/name, or org/name/folder) or a folder (/path/to/it or "
            "s3://bucket/path)"
        )
    if revision is None or not REVISION.fullmatch(revision):
        raise UnknownModel(
            f"the tokenizer {name!r} needs {REVISION_SETTING} (it is {revision!r}): its commit on the Hub"
        )
    return TokenizerCheckpoint(hub_id, revision, subfolder=subfolder)


def local_tokenizer(root: Root, tokenizer: TokenizerCheckpoint, cache: CacheConfig) -> Path:
    """The local folder with a tokenizer's files. They are mirrored in the root, from which every machine reads them.

    Raises:
        WeightsError: if the source has no ``tokenizer.json``, denies access, or cannot be read.
        StoreError: if the root cannot be written.
    """
    publish(root, tokenizer, cache.folder, verify=cache.verify)
    folder = ensure_local(root, tokenizer, cache.folder, limit=cache.limit, verify=cache.verify)
    return folder / tokenizer.subfolder
