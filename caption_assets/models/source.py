"""Where a model's files come from: the Hub, or a folder, local or in object storage."""

from __future__ import annotations

import io
import posixpath
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Protocol

from caption_assets.models.hub import Hub
from caption_assets.models.variants import Variant
from caption_assets.models.weights import CHUNK_BYTES, ListedFile, WeightFile, WeightsError, belongs
from caption_assets.store.access import STANDARD, Access
from caption_assets.store.failure import explain
from caption_assets.store.root import Root


class Source(Protocol):
    """A place that holds the files of one model."""

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
        """The model's files, sorted by path.

        Raises:
            WeightsError: if they cannot be listed.
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
    """A folder of a root as the place of a model."""

    root: Root
    path: str = ""
    """Relative to the root."""
    remedy: str = "put the whole model there"
    pinned: bool = False

    @property
    def address(self) -> str:
        """The folder as another program would open it."""
        return self.root.address(self.path)

    def sizes(self) -> dict[str, int]:
        """Bytes of each file of a model in it, by path; none if there is no such folder.

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
        return {path: found[path] for path in sorted(found) if belongs(path)}

    def files(self) -> list[ListedFile]:
        """The model's files. Those of a local folder are hashed: they may have changed."""
        listed = [ListedFile(path, size) for path, size in self.sizes().items()]
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


def find_source(variant: Variant, access: Access = STANDARD) -> Source:
    """Where the files of a variant come from.

    Args:
        variant: the model.
        access: how a folder in object storage is reached.
    """
    if variant.bundled:
        return Folder(Root.open(str(files("caption_assets.sample") / "model")), remedy="install the package again")
    if variant.path is not None:
        return Folder(Root.open(variant.path, access))
    return Hub(variant.hub_id, variant.revision)
