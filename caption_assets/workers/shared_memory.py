"""Memory shared with worker processes: nameless, so that nothing is left of it when its processes are gone."""

from __future__ import annotations

import itertools
import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

MEMORY_BYTES = 256 << 20
"""Bytes of a clip that are kept in memory. Several clips are held at a time."""
_SERIALS = itertools.count()


@dataclass(frozen=True, slots=True)
class BufferHandle:
    """What another process of the same user needs to map a buffer, while its owner holds it."""

    owner: int
    """Process id."""
    descriptor: int
    """Of the buffer in the owner."""
    serial: int
    """Differs from that of every other buffer of the owner, also where it has their descriptor."""

    @contextmanager
    def map(self) -> Iterator[mmap.mmap]:
        """The buffer's memory.

        Raises:
            OSError: if the owner is gone or has let it go.
        """
        with open(f"/proc/{self.owner}/fd/{self.descriptor}", "r+b") as file:
            memory = mmap.mmap(file.fileno(), 0)
        with memory:
            yield memory

    def open(self) -> BinaryIO:
        """The buffer as a file of its own, for reading.

        Raises:
            OSError: if the owner is gone or has let it go.
        """
        return open(f"/proc/{self.owner}/fd/{self.descriptor}", "rb")


class Buffer:
    """Bytes of this process that workers can map. Freed when nothing refers to its memory any more.

    It is a memfd: it has no name in /dev/shm, whose size is 64 MB in a container, and the kernel frees it when the last
    process that maps it ends, however that ends.

    Args:
        size: bytes, at least 1.
    """

    def __init__(self, size: int) -> None:
        self._serial = next(_SERIALS)
        self._descriptor = os.memfd_create("caption-assets")
        try:
            os.ftruncate(self._descriptor, size)
            self.memory = mmap.mmap(self._descriptor, size)
            """This process's view."""
        except BaseException:
            os.close(self._descriptor)
            raise

    def __del__(self) -> None:
        os.close(self._descriptor)

    @property
    def handle(self) -> BufferHandle:
        """For a worker; good as long as this object lives."""
        return BufferHandle(os.getpid(), self._descriptor, self._serial)


class ClipFile:
    """A clip's bytes, which workers can open. Freed when this object is gone and no worker has it open.

    It lies in memory up to ``MEMORY_BYTES``, and else in a nameless file on disk.

    Args:
        size: bytes that the clip has.
    """

    def __init__(self, size: int) -> None:
        if size <= MEMORY_BYTES:
            self._file = os.fdopen(os.memfd_create("caption-assets"), "wb", buffering=0)
        else:
            nameless = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115, closed with this object
            self._file = nameless
        self._serial = next(_SERIALS)
        self.size = 0
        """Bytes that it has so far."""

    def append(self, piece: bytes) -> None:
        """Add the next bytes."""
        view = memoryview(piece)
        while view:
            view = view[self._file.write(view) :]
        self.size += len(piece)

    @property
    def handle(self) -> BufferHandle:
        """For a worker; good as long as this object lives."""
        return BufferHandle(os.getpid(), self._file.fileno(), self._serial)
