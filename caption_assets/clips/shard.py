"""The shards of a source."""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from typing import Any

from caption_assets.errors import CaptionAssetsError
from caption_assets.store.failure import StoreError, clear_errors
from caption_assets.store.root import Root

KEY_PATTERN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
"""Keys that Dagster's partitions, file systems and object stores all take; a comma, say, breaks backfills in the UI."""
SIDE_SUFFIX = ".json"
TEXT_SUFFIX = ".txt"
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mpg", ".mpeg", ".flv", ".wmv", ".ogv", ".gif"}
)


class ShardError(CaptionAssetsError):
    """A source or shard that is not there or cannot be listed."""


class Layout(StrEnum):
    """How a shard holds its clips."""

    FOLDER = "folder"
    TAR = "tar"
    LIST = "list"


LAYOUTS = {".tar": Layout.TAR, ".parquet": Layout.LIST, ".jsonl": Layout.LIST}
"""Layouts that are a single file, by its suffix."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A dataset shard of the source."""

    key: str
    """Name of the shard, which is its partition key."""
    layout: Layout
    path: str
    """The folder, tar or list, relative to the source."""
    file: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)
    """Fsspec's entry of a tar or list."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What a source holds."""

    shards: list[Shard]
    """Sorted by key."""
    refused: Mapping[str, str]
    """What looks like a shard and is none, by path in the source: why."""
    keys: frozenset[str]
    """Of all of these."""


@dataclass(frozen=True, slots=True)
class Content:
    """What is in a shard, as far as its listing tells."""

    version: str
    """A short hash of names, sizes, and ETags or else times of change."""
    changed: datetime | None
    """When a file of it was last written; None if there is none."""


def list_shards(source: Root) -> Listing:
    """The source's shards. No shards: hidden entries, and those that are neither folder, tar nor list.

    Raises:
        ShardError: if the source is not there.
    """
    shards = _shards(source)
    times = Counter(shard.key for shard in shards)
    refused = {}
    for shard in shards:
        if not KEY_PATTERN.fullmatch(shard.key):
            refused[shard.path] = "its name cannot be a partition: rename it to letters, digits, '_', '-' and '.'"
        elif times[shard.key] > 1:
            refused[shard.path] = f"{times[shard.key]} shards have the key {shard.key!r}: rename all but one"
    return Listing([shard for shard in shards if shard.path not in refused], refused, frozenset(times))


def find_shard(source: Root, key: str) -> Shard:
    """The shard named ``key``.

    Raises:
        ShardError: if the source has no such shard.
    """
    shards = _shards(source)
    for shard in shards:
        if shard.key == key:
            return shard
    known = ", ".join(shard.key for shard in shards[:5]) or "none"
    raise ShardError(
        f"shard {key!r} is not in the source {source.url!r} (it has {len(shards)}: {known}"
        f"{', …' if len(shards) > 5 else ''}): check the partition's name and CAPTION_SOURCE"
    )


def shard_content(source: Root, shard: Shard) -> Content:
    """What is in a shard.

    Of a list, this is the list file itself: the clips it names are not looked at.

    Raises:
        StoreError: if it cannot be listed.
    """
    if shard.file:
        files = [(shard.path, shard.file)]
    else:
        with clear_errors(f"cannot list shard {shard.key!r} in {source.url!r}"):
            files = files_below(source, shard)
    lines = sorted(json.dumps([name, file["size"], str(file.get("ETag") or file.get("mtime"))]) for name, file in files)
    return Content(
        version=sha256("\n".join(lines).encode()).hexdigest()[:16],
        changed=max((_written(file) for _, file in files), default=None),
    )


def _written(file: Mapping[str, Any]) -> datetime:
    """S3's time of change, or a local file's."""
    return file.get("LastModified") or datetime.fromtimestamp(file["mtime"], UTC)


def files_below(source: Root, shard: Shard) -> list[tuple[str, Mapping[str, Any]]]:
    """The videos of a folder and the files that may go with them, by name within the folder, with fsspec's entries.

    A link to a folder is listed and not followed. Hidden files and folders are left out.
    """
    base = source.full(shard.path) + "/"
    entries = source.fs.find(base, detail=True).values()
    return [
        (name, entry)
        for entry in entries
        if not is_hidden(name := entry["name"].removeprefix(base).lstrip("/"))
        and (is_video(name) or suffix(name) in (SIDE_SUFFIX, TEXT_SUFFIX) or _is_linked_folder(entry))
    ]


def is_video(name: str) -> bool:
    """Whether a file is taken for a video, by its name."""
    return suffix(name) in VIDEO_SUFFIXES


def suffix(name: str) -> str:
    """The suffix of a file's name, in small letters, with its dot."""
    return posixpath.splitext(name)[1].lower()


def is_hidden(name: str) -> bool:
    """Whether a file or a folder above it begins with a dot."""
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def _is_linked_folder(entry: Mapping[str, Any]) -> bool:
    return bool(entry.get("islink")) and os.path.isdir(entry["name"])


def _shards(source: Root) -> list[Shard]:
    """Every entry that is a shard, its name not yet checked."""
    try:
        entries = list(source.entries())
    except FileNotFoundError as error:
        raise ShardError(
            f"the source {source.url!r} does not exist: put shards there, or set CAPTION_SOURCE to where they are"
        ) from error
    except StoreError as error:
        raise ShardError(f"CAPTION_SOURCE is {source.url!r}: {error}") from error
    return sorted((shard for entry in entries if (shard := _as_shard(entry))), key=lambda shard: shard.key)


def _as_shard(entry: Mapping[str, Any]) -> Shard | None:
    name = posixpath.basename(entry["name"].rstrip("/"))
    if name.startswith("."):
        return None
    if entry["type"] == "directory":
        return Shard(name, Layout.FOLDER, name)
    stem, ending = posixpath.splitext(name)
    return Shard(stem, LAYOUTS[ending], name, entry) if ending in LAYOUTS else None
