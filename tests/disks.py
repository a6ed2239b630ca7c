"""Small disks that fill up: tmpfs mounts, with the kernel's own ENOSPC."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, *, kilobytes: int = 0, files: int = 0) -> Iterator[Path]:
    """Mount a small disk, or skip the test without permission to mount (root in a container needs SYS_ADMIN).

    Args:
        folder: mount point; created if missing.
        kilobytes: size, in whole pages of 4 KiB; 0 for no limit.
        files: maximum number of files and folders, including the mount point; 0 for no limit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    options = f"size={kilobytes}k,nr_inodes={files}"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a disk: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def enlarge(folder: Path) -> None:
    """Free space on a mounted small disk."""
    subprocess.run(["mount", "-o", "remount,size=64m,nr_inodes=0", folder], check=True)


def fill(folder: Path, *, leave: int = 0) -> None:
    """Fill a small disk, except for ``leave`` bytes."""
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(max(file.tell() - leave, 0))
