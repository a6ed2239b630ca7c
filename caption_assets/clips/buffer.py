"""Memory shared with worker processes: nameless, so that nothing is left of it when its processes are gone."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BufferHandle:
    """What another process of the same user needs to map a buffer, while its owner holds it."""

    owner: int
    """Process id."""
    descriptor: int
    """Of the buffer in the owner."""

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


class Buffer:
    """Bytes of this process that workers can map. Freed when nothing refers to its memory any more.

    It is a memfd: it has no name in /dev/shm, whose size is 64 MB in a container, and the kernel frees it when the last
    process that maps it ends, however that ends.

    Args:
        size: bytes, at least 1.
    """

    def __init__(self, size: int) -> None:
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
        return BufferHandle(os.getpid(), self._descriptor)
