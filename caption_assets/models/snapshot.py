"""A snapshot: a checkpoint in a folder named by its Hub id, as NeMo Curator and ``snapshot_download`` store it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from caption_assets.models.checkpoint import Checkpoint
from caption_assets.models.checkpoint_files import CONFIG
from caption_assets.models.download import PARALLEL_DOWNLOADS
from caption_assets.models.mirror import check_loadable, publish, published_manifest
from caption_assets.models.source import Folder, find_source
from caption_assets.models.weights import MANIFEST, ListedFile, Mismatch, WeightFile, WeightsError, WeightsManifest
from caption_assets.store.failure import StoreError
from caption_assets.store.root import Root

RECORDS = Path(".cache", "huggingface", "download")
"""Folder in which ``snapshot_download`` records commit and hash of each file."""
SHA256_DIGITS = 64
"""Length of a recorded SHA-256, the hash of a large file. That of a small file is Git's, which is shorter."""
WEIGHTS_OR_INDEX = {"model.safetensors", "model.safetensors.index.json"}
"""Files of which every complete model has one: all weights, or the list of their files."""
logger = logging.getLogger(__name__)


class IncompleteSnapshot(WeightsError):
    """A snapshot with missing or truncated files."""


@dataclass(frozen=True, slots=True)
class _Published:
    """Files as a commit published them."""

    files: Sequence[ListedFile]
    commit: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A model's folder in a local root. No file of a complete model is replaced."""

    root: Root
    checkpoint: Checkpoint
    remedy: str
    """Remedy for missing files, for messages."""
    setting: str
    """The setting or argument that chooses the root, for messages."""

    @property
    def folder(self) -> Folder:
        """The folder: ``<organization>/<name>``."""
        return Folder(self.root, self.checkpoint.hub_id, remedy=self.remedy)

    @property
    def path(self) -> Path:
        """The folder on this machine."""
        return Path(self.folder.address)

    def download(self) -> None:
        """Download the files that are missing, and verify the others.

        Raises:
            WeightsError: if the download fails, or a file does not match its published hash.
        """
        try:
            self.verify(ask_source=True)
        except IncompleteSnapshot:
            cache = Path(self.root.path)
            publish(self.root, self.checkpoint, cache, mirror=self.folder, root_setting=self.setting)

    def verify(self, *, ask_source: bool = False) -> None:
        """Verify that all files are there and match their published hashes.

        The hashes are read from the manifest, or else from the records of ``snapshot_download``, or else from the
        source. Files with the sizes in the manifest are not hashed again. Without hashes, only the completeness and the
        headers of the files are verified, and a warning is logged.

        Args:
            ask_source: whether to request hashes that were not recorded from the source.

        Raises:
            IncompleteSnapshot: if files are missing or truncated.
            WeightsError: if a file does not match its hash.
        """
        sizes = self.folder.sizes()
        manifest = published_manifest(self.folder, self.checkpoint)
        if manifest and all(sizes.get(file.path) == file.size for file in manifest.files):
            return
        published = _Published(manifest.listed, manifest.revision) if manifest else self._recorded(sizes)
        self._check_loadable(sizes)
        if published is None and ask_source:
            published = self._of_source()
        if published is None:
            logger.warning("the files of %s are complete, but no hashes are known to verify them with", self.path)
            return
        files = self._compare(published.files, sizes)
        if published.commit != self.checkpoint.revision:
            logger.warning("%s has commit %s instead of %s", self.path, published.commit, self.checkpoint.revision)
        else:
            manifest = WeightsManifest(self.checkpoint.hub_id, published.commit, files)
            with suppress(StoreError):  # a folder that cannot be written is verified every time
                self.root.write(f"{self.folder.path}/{MANIFEST}", manifest.to_json().encode())

    def _recorded(self, sizes: Mapping[str, int]) -> _Published | None:
        """The files as ``snapshot_download`` recorded them; None if it recorded not all, or several commits."""
        folder = self.path / RECORDS
        names = [path.relative_to(folder).as_posix().removesuffix(".metadata") for path in folder.rglob("*.metadata")]
        commits, files = set(), []
        for name in self.checkpoint.kind.select(names):
            commit, digest, *_ = [*(folder / f"{name}.metadata").read_text().split(), "", ""]
            commits.add(commit)
            hashes = {"sha256": digest} if len(digest) == SHA256_DIGITS else {"git_blob": digest}
            files.append(ListedFile(name, sizes.get(name, 0), **hashes))
        is_complete = {*self.checkpoint.kind.select(sizes)} <= {file.path for file in files}
        return _Published(files, commits.pop()) if is_complete and len(commits) == 1 else None

    def _of_source(self) -> _Published | None:
        source = find_source(self.checkpoint)
        try:
            return _Published(source.files(), self.checkpoint.revision)
        except WeightsError as error:
            logger.warning("cannot list the files of %s: %s", self.checkpoint.hub_id, error)
            return None

    def _check_loadable(self, sizes: Mapping[str, int]) -> None:
        if CONFIG not in sizes or not WEIGHTS_OR_INDEX & sizes.keys():
            raise IncompleteSnapshot(f"{self.path} does not contain a model: {self.remedy}")
        present = [ListedFile(path, sizes[path]) for path in self.checkpoint.kind.select(sizes)]
        try:
            for file in present:
                check_loadable(self.path / file.path, file, present, self.folder)
        except WeightsError as error:
            raise IncompleteSnapshot(str(error)) from error

    def _compare(self, files: Sequence[ListedFile], sizes: Mapping[str, int]) -> tuple[WeightFile, ...]:
        if absent := [file.path for file in files if file.path not in sizes]:
            raise IncompleteSnapshot(f"{self.path / absent[0]} does not exist: {self.remedy}")
        with ThreadPoolExecutor(PARALLEL_DOWNLOADS) as pool:
            return tuple(pool.map(self._verified, files))

    def _verified(self, file: ListedFile) -> WeightFile:
        try:
            return self.folder.verify(file)
        except Mismatch as error:
            raise WeightsError(
                f"{self.path / file.path} is not the published file ({error}): remove it, and {self.remedy}"
            ) from error
