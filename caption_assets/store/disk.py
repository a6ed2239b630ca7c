"""Disks of this machine that run full, and the temporary files on them."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from caption_assets.store.failure import StoreError

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Error numbers of a disk without free blocks or inodes, and of a user's quota that is used up."""

TEMPORARY_REMEDY = "free space there, or set TMPDIR to a folder on a larger disk"


class DiskFull(StoreError):
    """A folder of this machine without room for what is written to it."""


@contextmanager
def disk_room(folder: str | Path, remedy: str) -> Iterator[None]:
    """Report a full disk by its folder and free bytes. Other errors pass as they are.

    Args:
        folder: which the block writes to.
        remedy: an imperative phrase that ends the message.

    Raises:
        DiskFull: if the disk is full, or the user's quota of it.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise DiskFull(f"{reason_of(error, folder)}: {remedy}") from error


def reason_of(error: OSError, folder: str | Path) -> str:
    """Why ``folder``, which need not exist, could not be written: of a full disk with its free bytes."""
    if error.errno not in NO_SPACE:
        return error.strerror or str(error)
    place = Path(folder).absolute()
    there = next(parent for parent in (place, *place.parents) if parent.is_dir())
    usage = shutil.disk_usage(there)
    return (
        f"no space is left on the disk of {place} ({usage.free:,} of {usage.total:,} bytes are free; a quota or the "
        "number of files may be the limit)"
    )


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder on this machine's disk for files that are published or read, removed at the end.

    Raises:
        DiskFull: if there is no room for what the block writes to it.
        StoreError: if there is no folder for temporary files that can be written.
    """
    try:
        place = tempfile.gettempdir()
        with disk_room(place, TEMPORARY_REMEDY):
            folder = tempfile.TemporaryDirectory(dir=place)
    except (FileNotFoundError, PermissionError) as error:
        raise StoreError(
            f"cannot make a temporary folder ({error}): set TMPDIR to a folder that this user may write"
        ) from error
    with disk_room(place, TEMPORARY_REMEDY), folder as path:
        yield Path(path)
