"""Memory shared with worker processes. It has no name: the kernel frees it when its processes end."""

from __future__ import annotations

import itertools
import mmap
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

MEMORY_BYTES = 256 << 20
"""Maximum size of a clip that is stored in memory, in bytes. Several clips are open at a time."""
_SERIALS = itertools.count()


@dataclass(frozen=True, slots=True)
class BufferHandle:
    """A reference with which another process of the same user can access a buffer while its owner keeps it open.

    In its owner it keeps the buffer open: a job that runs on after its caller was canceled must not write to a file
    that got the buffer's descriptor. Pickled, it is a mere reference.
    """

    owner: int
    """Process id of the owner."""
    descriptor: int
    """File descriptor in the owner."""
    serial: int
    """Unique number of the buffer within its owner: descriptors are reused."""
    buffer: Buffer | ClipFile | None = field(default=None, compare=False, repr=False)
    """The buffer; None in other processes."""

    def __reduce__(self) -> tuple[type[BufferHandle], tuple[int, int, int]]:
        return BufferHandle, (self.owner, self.descriptor, self.serial)

    def write(self, content: NDArray[np.uint8]) -> None:
        """Write to the buffer from its start.

        The buffer is not mapped: with a page fault for each new page, the 32 MB of a window of Qwen2.5-VL-7B take 29 ms
        of CPU time instead of 18 ms.

        Raises:
            OSError: if the owner has ended or has freed the buffer.
        """
        with open(f"/proc/{self.owner}/fd/{self.descriptor}", "r+b") as file:
            file.write(np.ascontiguousarray(content).data)  # pictures turned upright are not contiguous

    def open(self) -> BinaryIO:
        """Open the buffer as a file for reading, with a position of its own.

        Raises:
            OSError: if the owner has ended or has freed the buffer.
        """
        return open(f"/proc/{self.owner}/fd/{self.descriptor}", "rb")


class Buffer:
    """Memory of this process that workers can write. It is freed with the last reference to it.

    It is a memfd. It needs no space in /dev/shm, which is limited to 64 MB in a container. The kernel frees it when the
    last process that maps it ends, even by a signal.

    Args:
        size: size in bytes, at least 1.
    """

    def __init__(self, size: int) -> None:
        self.serial = next(_SERIALS)
        self._descriptor = os.memfd_create("caption-assets")
        try:
            os.ftruncate(self._descriptor, size)
            self.memory = mmap.mmap(self._descriptor, size)
            """The mapping in this process."""
        except BaseException:
            os.close(self._descriptor)
            raise

    def __del__(self) -> None:
        os.close(self._descriptor)

    @property
    def handle(self) -> BufferHandle:
        """A reference for workers."""
        return BufferHandle(os.getpid(), self._descriptor, self.serial, self)


class ClipFile:
    """A clip's bytes, which workers can open as a file.

    They are stored in memory up to ``MEMORY_BYTES``, and otherwise in an unnamed temporary file. They are freed when
    this object is deleted and no worker has the file open.

    Args:
        size: size of the clip, in bytes.
    """

    def __init__(self, size: int) -> None:
        if size <= MEMORY_BYTES:
            self._file = os.fdopen(os.memfd_create("caption-assets"), "wb", buffering=0)
        else:
            unnamed = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115, closed with this object
            self._file = unnamed
        self.serial = next(_SERIALS)
        """See ``BufferHandle.serial``."""
        self.size = 0
        """Number of bytes so far."""

    def append(self, piece: bytes) -> None:
        """Append the next bytes."""
        view = memoryview(piece)
        while view:
            view = view[self._file.write(view) :]
        self.size += len(piece)

    @property
    def handle(self) -> BufferHandle:
        """A reference for workers."""
        return BufferHandle(os.getpid(), self._file.fileno(), self.serial, self)

    @property
    def path(self) -> Path:
        """Path at which this process can read it, valid while this object exists."""
        return Path(f"/proc/self/fd/{self._file.fileno()}")
