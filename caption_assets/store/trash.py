"""The trash: the outputs of retired shards, kept in the root until the trash is emptied.

An entry contains the objects that were moved at one time, at ``_trash/shard=<shard>/<time>/<former path>``. Its marker
is written last. An entry without a marker is incomplete: moving the shard to the trash again completes it, and
restoring it empties it.
"""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

from caption_assets.errors import CaptionAssetsError
from caption_assets.store.root import COPY_BYTES, Root

TRASH = "_trash"
MARKER = "_complete"
"""Name of the marker in an entry's folder."""
TIME_FORMAT = "%Y-%m-%dT%H-%M-%S-%fZ"
"""Format of the name of an entry's folder, without colons, which some file systems do not allow."""
_PATH = re.compile(
    rf"{TRASH}/shard=(?P<shard>[^/]+)/(?P<time>\d{{4}}-[01]\d-[0-3]\dT[0-2]\d-[0-5]\d-[0-5]\d-\d{{6}}Z)/(?P<path>.+)",
    re.DOTALL,
)
PARALLEL_MOVES = 16
"""Number of concurrent moves. In object storage each takes a copy and a deletion."""


class TrashError(CaptionAssetsError):
    """An entry that does not exist or cannot be restored."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The objects of a shard that were moved to the trash at one time."""

    shard: str
    time: str
    sizes: Mapping[str, int]
    """Size of each object, in bytes, by its former path."""
    is_complete: bool
    """Whether all objects of the shard were moved."""

    @property
    def folder(self) -> str:
        """Its folder, relative to the root."""
        return f"{TRASH}/shard={self.shard}/{self.time}"

    @property
    def age_days(self) -> float:
        """Days since its creation."""
        created = datetime.strptime(self.time, TIME_FORMAT).replace(tzinfo=UTC)
        return (datetime.now(UTC) - created).total_seconds() / 86400


def list_entries(root: Root, shard: str | None = None) -> list[Entry]:
    """The entries of a shard, or of all, sorted by shard and time.

    Raises:
        StoreError: if the trash cannot be listed.
    """
    found: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for path, size in root.sizes(TRASH if shard is None else f"{TRASH}/shard={shard}").items():
        if match := _PATH.fullmatch(path):  # other objects are not this project's
            found[match["shard"], match["time"]][match["path"]] = size
    return [
        Entry(key, time, {path: size for path, size in sizes.items() if path != MARKER}, MARKER in sizes)
        for (key, time), sizes in sorted(found.items())
    ]


def move_to_trash(root: Root, shard: str, paths: Sequence[str]) -> Entry | None:
    """Move objects of a shard into the trash; None if there are none.

    After an interruption, another call with the remaining paths completes the entry.

    Raises:
        StoreError: if an object cannot be moved.
    """
    incomplete = [entry for entry in list_entries(root, shard) if not entry.is_complete]
    entry = next((entry for entry in incomplete if not _conflicts(root, entry, paths)), None)
    if entry is None:
        if not paths:
            return None
        entry = Entry(shard, datetime.now(UTC).strftime(TIME_FORMAT), {}, is_complete=False)
    _each(lambda path: root.move(path, posixpath.join(entry.folder, path)), paths)
    root.write(f"{entry.folder}/{MARKER}", b"")
    return next(found for found in list_entries(root, shard) if found.time == entry.time)


def restore_entry(root: Root, entry: Entry) -> None:
    """Move an entry's objects back to their former paths. After an interruption, repeat the call.

    Raises:
        TrashError: if different objects exist at these paths; no object is moved then.
        StoreError: if an object cannot be moved.
    """
    if taken := _conflicts(root, entry, entry.sizes):
        raise TrashError(
            f"{root.address(taken[0])} exists and differs from the retired file ({len(taken)} such files): the shard "
            f"was materialized again; retire it first, then restore the entry of {entry.time}"
        )
    root.remove(f"{entry.folder}/{MARKER}")
    _each(lambda path: root.move(posixpath.join(entry.folder, path), path), entry.sizes)
    root.prune(f"{TRASH}/shard={entry.shard}")


def remove_entry(root: Root, entry: Entry) -> None:
    """Remove an entry permanently.

    Raises:
        StoreError: if an object cannot be removed.
    """
    root.remove_folder(entry.folder)
    root.prune(f"{TRASH}/shard={entry.shard}")


def _conflicts(root: Root, entry: Entry, paths: Iterable[str]) -> list[str]:
    """The paths with different objects in the entry and in the root.

    A move that was interrupted between copy and deletion leaves two equal objects, which is no conflict.
    """
    moved = [path for path in paths if path in entry.sizes]
    present = {path for folder in set(map(posixpath.dirname, moved)) for path in root.sizes(folder)}
    both = [path for path in moved if path in present]
    return [path for path in both if not _are_equal(root, path, posixpath.join(entry.folder, path))]


def _are_equal(root: Root, one: str, other: str) -> bool:
    if root.fs.size(root.full(one)) != root.fs.size(root.full(other)):
        return False
    with root.fs.open(root.full(one), "rb") as left, root.fs.open(root.full(other), "rb") as right:
        while chunk := left.read(COPY_BYTES):
            if chunk != right.read(COPY_BYTES):
                return False
    return True


def _each(do: Callable[[str], None], paths: Iterable[str]) -> None:
    with ThreadPoolExecutor(PARALLEL_MOVES) as pool:
        for _ in pool.map(do, paths):
            pass
