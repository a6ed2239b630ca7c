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
from caption_assets.models.hub import Hub
from caption_assets.models.parts import MODEL, Layout
from caption_assets.models.weights import CHUNK_BYTES, ListedFile, WeightFile, WeightsError
from caption_assets.store.access import STANDARD, Access
from caption_assets.store.failure import explain
from caption_assets.store.root import Root


class Source(Protocol):
    """A place that holds the files of one checkpoint."""

    @property
    def address(self) -> str:
        """For people: where the files are."""
        ...

    @property
    def remedy(self) -> str:
        """What to do about a file that is missing there, or damaged."""
        ...

    @property
    def pinned(self) -> bool:
        """Whether the files can never change."""
        ...

    def files(self) -> Sequence[ListedFile]:
        """The checkpoint's files, sorted by path.

        Raises:
            WeightsError: if they cannot be listed, or are no such checkpoint.
        """
        ...

    def copy(self, file: ListedFile, target: io.BufferedWriter) -> None:
        """Write a file's bytes to ``target``, from the position on at which it stands.

        Raises:
            WeightsError: if they cannot be read.
        """
        ...


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of a root as the place of a checkpoint."""

    root: Root
    path: str = ""
    """Relative to the root."""
    remedy: str = "put the whole model there"
    pinned: bool = False
    layout: Layout = MODEL

    @property
    def address(self) -> str:
        """The folder as another program would open it."""
        return self.root.address(self.path)

    def sizes(self) -> dict[str, int]:
        """Bytes of each file in it, by path; none if there is no such folder.

        Raises:
            WeightsError: if it cannot be listed.
        """
        base = self.root.full(self.path)
        with self._clear_errors(self.address):
            if self.root.is_local:  # fsspec has no sizes of what a link leads to
                paths = [path for path in Path(base).rglob("*") if path.is_file()]
                found = {path.relative_to(base).as_posix(): path.stat().st_size for path in paths}
            else:
                entries = self.root.fs.find(base, detail=True).items()
                found = {posixpath.relpath(name, base): int(entry["size"]) for name, entry in entries}
        return found

    def files(self) -> list[ListedFile]:
        """The checkpoint's files. Those of a local folder are hashed: they may have changed."""
        sizes = self.sizes()
        self.layout.check(list(sizes), self.address)
        listed = [ListedFile(path, sizes[path]) for path in self.layout.select(sizes)]
        return [self.examine(file).listed for file in listed] if self.root.is_local else listed

    def examine(self, file: ListedFile) -> WeightFile:
        """Read a file to its end, and return it with its hash.

        Raises:
            Mismatch: if it is another than ``file``.
            WeightsError: if it cannot be read.
        """
        with self._open(file) as content:
            return file.examine(content)

    def copy(self, file: ListedFile, target: io.BufferedWriter) -> None:
        """Write a file's bytes to ``target``, from the position on at which it stands."""
        with self._open(file) as content:
            content.seek(target.tell())
            while chunk := content.read(CHUNK_BYTES):
                target.write(chunk)

    @contextmanager
    def _open(self, file: ListedFile) -> Iterator[io.BufferedReader]:
        path = posixpath.join(self.path, file.path)
        with (
            self._clear_errors(self.root.address(path)),
            self.root.fs.open(self.root.full(path), "rb", block_size=CHUNK_BYTES) as content,
        ):
            yield content

    @contextmanager
    def _clear_errors(self, address: str) -> Iterator[None]:
        try:
            yield
        except WeightsError:
            raise
        except FileNotFoundError as error:
            raise WeightsError(f"{address} does not exist: {self.remedy}") from error
        except Exception as error:  # stores have many: OSError, botocore's, their clients'
            raise WeightsError(f"cannot read {address}: {explain(error)}") from error


def find_source(checkpoint: Checkpoint, access: Access = STANDARD) -> Hub | Folder:
    """The source of a checkpoint's files.

    Args:
        checkpoint: the model or adapter.
        access: how a folder in object storage is reached.
    """
    layout = checkpoint.layout
    if checkpoint.bundled:
        return Folder(Root.open(str(files("caption_assets.sample") / "model")), remedy="install the package again")
    if checkpoint.path is not None:
        return Folder(Root.open(checkpoint.path, access), remedy=f"put the whole {layout.noun} there", layout=layout)
    return Hub(checkpoint.hub_id, checkpoint.revision, layout=layout)


def read_file(source: Source, file: ListedFile) -> bytes:
    """The content of a small file.

    Raises:
        WeightsError: if it cannot be read.
    """
    with TemporaryFile() as content:
        source.copy(file, content)  # type: ignore[arg-type]  # a buffered file that can be read too
        content.seek(0)
        return content.read()
