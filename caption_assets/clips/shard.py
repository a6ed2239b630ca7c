"""The shards of a source, and the clips of a shard."""

from __future__ import annotations

import itertools
import posixpath
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import Any

from caption_assets.clips.clip import Clip, Span
from caption_assets.errors import CaptionAssetsError
from caption_assets.store.root import Root

KEY_PATTERN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
"""Keys that Dagster's partitions, file systems and object stores all take; a comma, say, breaks backfills in the UI."""
TAR_SUFFIX = ".tar"
SIDE_SUFFIX = ".json"
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mpg", ".mpeg", ".flv", ".wmv", ".ogv", ".gif"}
)


class ShardError(CaptionAssetsError):
    """A source or shard that is not there or cannot be listed."""


class Layout(StrEnum):
    """How a shard holds its clips."""

    FOLDER = "folder"
    TAR = "tar"


@dataclass(frozen=True, slots=True)
class Shard:
    """A dataset shard of the source."""

    key: str
    """Name of the shard, which is its partition key."""
    layout: Layout
    path: str
    """The folder or tar, relative to the source."""


def list_shards(source: Root) -> list[Shard]:
    """The source's shards, sorted by key. Hidden entries and those that are neither folder nor tar are no shards.

    Raises:
        ShardError: if the source is not there, holds a name that cannot be a partition key, or two shards of one name.
    """
    shards = _shards(source)
    for shard in shards:
        if not KEY_PATTERN.fullmatch(shard.key):
            raise ShardError(
                f"shard {shard.key!r} in {source.url!r} cannot be a partition: rename it to letters, digits, '_', '-' "
                "and '.'"
            )
    for one, other in itertools.pairwise(shards):
        if one.key == other.key:
            raise ShardError(f"{one.path!r} and {other.path!r} in {source.url!r} have the same key: rename one of them")
    return shards


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


def list_clips(source: Root, shard: Shard) -> list[Clip]:
    """The shard's clips, sorted by key.

    Raises:
        ShardError: if a tar cannot be read as one.
    """
    clips = _tar_clips(source, shard) if shard.layout is Layout.TAR else _folder_clips(source, shard)
    return sorted(clips, key=lambda clip: clip.key)


def content_version(source: Root, shard: Shard) -> str:
    """A short hash of the shard's listing: names, sizes, and ETags or else times of change."""
    info = [source.fs.info(source.full(shard.path))]
    if shard.layout is Layout.FOLDER:
        entries = _files_below(source, shard.path)
        info = [entry for entry in entries if _is_video(entry["name"]) or entry["name"].endswith(SIDE_SUFFIX)]
    base = source.full(shard.path)
    return sha256("\n".join(_listing_lines(base, info)).encode()).hexdigest()[:16]


def _shards(source: Root) -> list[Shard]:
    """Every entry that is a shard, its name not yet checked."""
    try:
        entries = list(source.entries())
    except FileNotFoundError as error:
        raise ShardError(
            f"the source {source.url!r} does not exist: put shards there, or set CAPTION_SOURCE to where they are"
        ) from error
    except Exception as error:  # stores have many: OSError, botocore's, their clients'
        raise ShardError(f"the source {source.url!r} cannot be listed: {error}") from error
    return sorted((shard for entry in entries if (shard := _as_shard(entry))), key=lambda shard: shard.key)


def _as_shard(entry: dict[str, Any]) -> Shard | None:
    name = posixpath.basename(entry["name"].rstrip("/"))
    if name.startswith("."):
        return None
    if entry["type"] == "directory":
        return Shard(name, Layout.FOLDER, name)
    if name.endswith(TAR_SUFFIX):
        return Shard(name.removesuffix(TAR_SUFFIX), Layout.TAR, name)
    return None


def _is_video(name: str) -> bool:
    return posixpath.splitext(name)[1].lower() in VIDEO_SUFFIXES


def _files_below(source: Root, path: str) -> Iterable[dict[str, Any]]:
    return list(source.fs.find(source.full(path), detail=True).values())


def _listing_lines(base: str, entries: Iterable[dict[str, Any]]) -> list[str]:
    return sorted(
        f"{posixpath.relpath(entry['name'], base)}\t{entry['size']}\t{entry.get('ETag') or entry.get('mtime')}"
        for entry in entries
    )


def _folder_clips(source: Root, shard: Shard) -> Iterator[Clip]:
    base = source.full(shard.path)
    entries = _files_below(source, shard.path)
    yield from _with_sides(
        (
            posixpath.relpath(entry["name"], base),
            Span(source.fs.unstrip_protocol(entry["name"]), 0, int(entry["size"]), entry.get("ETag")),
        )
        for entry in entries
    )


def _tar_clips(source: Root, shard: Shard) -> Iterator[Clip]:
    """Regular members that are videos; links are no clips, since they could lead out of the shard."""
    path = source.full(shard.path)
    url = source.fs.unstrip_protocol(path)
    try:
        with source.fs.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            members = [
                (posixpath.normpath(member.name), Span(url, member.offset_data, member.size))
                for member in archive
                if member.isreg()
            ]
    except tarfile.TarError as error:
        raise ShardError(
            f"shard {shard.key!r} cannot be read as an uncompressed tar ({error}): write it anew, without compression"
        ) from error
    yield from _with_sides(members)


def _with_sides(files: Iterable[tuple[str, Span]]) -> Iterator[Clip]:
    """The videos among a shard's files, each with the JSON file of its stem."""
    files = list(files)
    sides = {posixpath.splitext(name)[0]: span for name, span in files if name.endswith(SIDE_SUFFIX)}
    for name, span in files:
        if _is_video(name):
            yield Clip(name, span, sides.get(posixpath.splitext(name)[0]))
