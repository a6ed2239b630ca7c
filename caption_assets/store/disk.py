"""Local disks: full disks as clear errors, and temporary folders."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from caption_assets.store.failure import StoreError

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Error numbers of a full disk (blocks or inodes) and of an exhausted quota."""

TEMPORARY_REMEDY = "free space there, or set TMPDIR to a folder on a larger disk"


class DiskFull(StoreError):
    """A local folder on a full disk."""


@contextmanager
def report_full_disk(folder: str | Path, remedy: str) -> Iterator[None]:
    """Raise ``DiskFull`` with the folder and the number of free bytes if the disk is full. Other errors pass unchanged.

    Args:
        folder: the folder that the block writes to.
        remedy: an imperative phrase, for the message.

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
    """The reason why ``folder``, which need not exist, could not be written; with the free bytes of a full disk."""
    if error.errno not in NO_SPACE:
        return error.strerror or str(error)
    path = Path(folder).absolute()
    free, total = disk_space(path)
    return (
        f"no space left on the disk of {path} ({free:,} of {total:,} bytes are free; a quota or the number of files "
        "may be the limit)"
    )


def disk_space(folder: Path) -> tuple[int, int]:
    """Free and total bytes of the disk of a folder, which need not exist."""
    usage = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.is_dir()))
    return usage.free, usage.total


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A local folder for files to be uploaded or read, removed at the end of the block.

    Raises:
        DiskFull: if the disk is full.
        StoreError: if no folder for temporary files is writable.
    """
    try:
        place = tempfile.gettempdir()
        with report_full_disk(place, TEMPORARY_REMEDY):
            folder = tempfile.TemporaryDirectory(dir=place)
    except (FileNotFoundError, PermissionError) as error:
        raise StoreError(
            f"cannot create a temporary folder ({error}): set TMPDIR to a folder that this user may write"
        ) from error
    with report_full_disk(place, TEMPORARY_REMEDY), folder as path:
        yield Path(path)
