"""The sources of a checkpoint's files: the Hub, or a folder, local or in object storage."""

from __future__ import annotations

import io
import posixpath
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryFile
from typing import Protocol

from caption_assets.models.checkpoint import Checkpoint
from caption_assets.models.checkpoint_files import MODEL, CheckpointKind
from caption_assets.models.hub import Hub
from caption_assets.models.weights import CHUNK_BYTES, ListedFile, WeightFile, WeightsError
from caption_assets.store.access import STANDARD, Access
from caption_assets.store.failure import explain
from caption_assets.store.root import Root


class Source(Protocol):
    """A source of the files of one checkpoint."""

    @property
    def address(self) -> str:
        """Its address, for messages."""
        ...

    @property
    def remedy(self) -> str:
        """Remedy for a file that is missing or damaged there, for messages."""
        ...

    @property
    def pinned(self) -> bool:
        """Whether the files can never change."""
        ...

    def files(self) -> Sequence[ListedFile]:
        """The checkpoint's files, sorted by path.

        Raises:
            WeightsError: if they cannot be listed, or are not a checkpoint of the expected kind.
        """
        ...

    def copy(self, file: ListedFile, target: io.BufferedWriter) -> None:
        """Write a file's bytes to ``target``, starting at its current position.

        Raises:
            WeightsError: if they cannot be read.
        """
        ...


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of a root as the source of a checkpoint."""

    root: Root
    path: str = ""
    """Relative to the root."""
    remedy: str = "put the whole model there"
    pinned: bool = False
    kind: CheckpointKind = MODEL

    @property
    def address(self) -> str:
        """The folder as another program would open it."""
        return self.root.address(self.path)

    def sizes(self) -> dict[str, int]:
        """Size of each file in it, in bytes, by path; empty if there is no such folder.

        Raises:
            WeightsError: if it cannot be listed.
        """
        base = self.root.full(self.path)
        with self._as_weights_error(self.address):
            if self.root.is_local:  # fsspec does not return the sizes of link targets
                paths = [path for path in Path(base).rglob("*") if path.is_file()]
                found = {path.relative_to(base).as_posix(): path.stat().st_size for path in paths}
            else:
                entries = self.root.fs.find(base, detail=True).items()
                found = {posixpath.relpath(name, base): int(entry["size"]) for name, entry in entries}
        return found

    def files(self) -> list[ListedFile]:
        """The checkpoint's files. Files of a local folder are hashed, because they may have changed."""
        sizes = self.sizes()
        self.kind.check(list(sizes), self.address)
        listed = [ListedFile(path, sizes[path]) for path in self.kind.select(sizes)]
        return [self.verify(file).listed for file in listed] if self.root.is_local else listed

    def verify(self, file: ListedFile) -> WeightFile:
        """Read a file to its end, compare it with its listing, and return it with its hash.

        Raises:
            Mismatch: if size or hash differ.
            WeightsError: if it cannot be read.
        """
        with self._open(file) as content:
            return file.verify(content)

    def copy(self, file: ListedFile, target: io.BufferedWriter) -> None:
        """Write a file's bytes to ``target``, starting at its current position."""
        with self._open(file) as content:
            content.seek(target.tell())
            while chunk := content.read(CHUNK_BYTES):
                target.write(chunk)

    @contextmanager
    def _open(self, file: ListedFile) -> Iterator[io.BufferedReader]:
        path = posixpath.join(self.path, file.path)
        with (
            self._as_weights_error(self.root.address(path)),
            self.root.fs.open(self.root.full(path), "rb", block_size=CHUNK_BYTES) as content,
        ):
            yield content

    @contextmanager
    def _as_weights_error(self, address: str) -> Iterator[None]:
        try:
            yield
        except WeightsError:
            raise
        except FileNotFoundError as error:
            raise WeightsError(f"{address} does not exist: {self.remedy}") from error
        except Exception as error:  # object stores raise many types: OSError, botocore's, their clients'
            raise WeightsError(f"cannot read {address}: {explain(error)}") from error


def find_source(checkpoint: Checkpoint, access: Access = STANDARD) -> Hub | Folder:
    """The source of a checkpoint's files.

    Args:
        checkpoint: the model or adapter.
        access: access to a folder in object storage.
    """
    kind = checkpoint.kind
    if checkpoint.bundled:
        return Folder(Root.open(str(files("caption_assets.sample") / "model")), remedy="reinstall the package")
    if checkpoint.path is not None:
        return Folder(Root.open(checkpoint.path, access), remedy=f"put the whole {kind.noun} there", kind=kind)
    return Hub(checkpoint.hub_id, checkpoint.revision, kind=kind)


def read_file(source: Source, file: ListedFile) -> bytes:
    """The content of a small file.

    Raises:
        WeightsError: if it cannot be read.
    """
    with TemporaryFile() as content:
        source.copy(file, content)  # type: ignore[arg-type]  # a buffered file, readable too
        content.seek(0)
        return content.read()
