"""The shards of a source: layouts, listing and content versions."""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from typing import Any

from av.format import ContainerFormat

from caption_assets.errors import CaptionAssetsError, printable
from caption_assets.store.failure import CLOCK_TOLERANCE, StoreError, translate_store_errors
from caption_assets.store.root import Root
from caption_assets.video.container import FORMATS

KEY_PATTERN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
"""Keys that Dagster's partitions, file systems and object stores all accept. A comma breaks backfills in the UI."""
JSON_SUFFIX = ".json"
TEXT_SUFFIX = ".txt"
OTHER_VIDEO_SUFFIXES = (
    ".ts .m2ts .mts .m2t .tp .trp .mpg .mpeg .mpe .m2p .vob .evo .mod .tod .m1v .m2v .mpv .asf .wmv .ogv .ogm .ogx "
    ".mxf .ivf .apng .webp .qt .mp4v .3gpp .3gp2 .f4p .divx .xvid .lrv .insv .360"
)
"""Suffixes of videos that FFmpeg's demuxers open but do not list, or that cameras use for their formats."""
AUDIO_SUFFIXES = frozenset({".m4a", ".m4b", ".mka", ".mks", ".isma"})
"""Suffixes that FFmpeg's demuxers list for files without video."""
VIDEO_SUFFIXES = (
    frozenset(f".{suffix}" for name in FORMATS.split(",") for suffix in ContainerFormat(name, "r").extensions).union(
        OTHER_VIDEO_SUFFIXES.split()
    )
    - AUDIO_SUFFIXES
)
"""Suffixes of clips: those of the demuxers in ``FORMATS``."""
STILL_SUFFIXES = frozenset({".webp", ".avif", ".heic", ".heif"})
"""Suffixes of files that may be videos. A file with the stem of another video is that video's thumbnail."""

ARCHIVE = re.compile(
    r"\.(tar\.[a-z0-9]+|tgz|tbz2?|txz|tzst|zip|7z|rar|(parquet|jsonl)\.(gz|bz2|xz|zst))$", re.IGNORECASE
)
"""Names of compressed shards and of archives other than tars."""


class ShardError(CaptionAssetsError):
    """A source or shard that does not exist or cannot be listed."""


class Layout(StrEnum):
    """The layout of a shard."""

    FOLDER = "folder"
    TAR = "tar"
    LIST = "list"


LAYOUTS = {".tar": Layout.TAR, ".parquet": Layout.LIST, ".jsonl": Layout.LIST}
"""Layouts of a single file, by suffix."""


class SkipReason(StrEnum):
    """The reason why an entry of the source is not a shard."""

    LOOSE_VIDEO = "videos outside a shard (move them into a folder)"
    LINKED_FOLDER = "linked folders, which are not followed (make them folders)"
    ARCHIVE = "archives that are not read (write an uncompressed .tar)"
    SUFFIX = "shard files with an unknown spelling of the suffix (rename to .tar, .parquet or .jsonl)"
    SPECIAL = "devices, sockets and pipes"
    UNNAMED = "object keys with an empty, '.' or '..' path segment (rename the objects)"
    HIDDEN = "hidden files and folders"
    OTHER = "other files"


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard of the source."""

    key: str
    """Partition key."""
    layout: Layout
    path: str
    """Path of the folder, tar or list, relative to the source."""
    file: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)
    """Directory entry of a tar or list, as fsspec returns it."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The content of a source."""

    shards: list[Shard]
    """Accepted shards, sorted by key."""
    refused: Mapping[str, str]
    """Reason for each refused shard, by its path in the source."""
    keys: frozenset[str]
    """Keys of all shards, accepted and refused."""
    skipped: Mapping[SkipReason, Sequence[str]]
    """Sorted names of the entries that are not shards, by reason."""

    def describe_skipped(self, shown: int) -> list[tuple[str, int, str]]:
        """A row for each reason: the reason, the number of entries, and the first ``shown`` of their names."""
        return [
            (reason, len(names), ", ".join(names[:shown]) + (", …" if len(names) > shown else ""))
            for reason in SkipReason
            if (names := self.skipped.get(reason))
        ]


@dataclass(frozen=True, slots=True)
class ShardContent:
    """The content of a shard, from a listing of its files."""

    version: str
    """A short hash of names, sizes, and ETags or else modification times."""
    changed: datetime | None
    """Latest modification time; None without files. Times in the future are ignored unless there are no others."""
    future: int = 0
    """Number of files with a modification time in the future, beyond ``CLOCK_TOLERANCE``."""


def list_shards(source: Root) -> Listing:
    """List the shards and the other entries of a source.

    Raises:
        ShardError: if the source does not exist or cannot be listed.
    """
    shards, skipped = _read_source(source)
    times = Counter(shard.key for shard in shards)
    refused = {}
    for shard in shards:
        if not KEY_PATTERN.fullmatch(shard.key):
            refused[shard.path] = (
                "its name is not a valid partition key: use ASCII letters, digits, '_', '-' and '.' only"
            )
        elif times[shard.key] > 1:
            refused[shard.path] = f"{times[shard.key]} shards have the key {shard.key!r}: rename all but one"
    accepted = [shard for shard in shards if shard.path not in refused]
    reasons = {_shown(path): reason for path, reason in refused.items()}
    return Listing(accepted, reasons, frozenset(map(_shown, times)), skipped)


def _shown(name: str) -> str:
    """A name in one line that can be encoded: what is not printable is escaped."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in name)


def refuse_loose_videos(source: Root, listing: Listing) -> None:
    """Refuse a source that is itself a folder of videos.

    Raises:
        ShardError: if it holds videos and no shards.
    """
    if not listing.keys and (videos := listing.skipped.get(SkipReason.LOOSE_VIDEO)):
        raise ShardError(
            f"CAPTION_SOURCE is {source.url!r}, which holds {len(videos)} videos but no shards: did you mean the "
            "parent folder? A shard is a folder of videos within the source"
        )


def find_shard(source: Root, key: str) -> Shard:
    """The shard named ``key``.

    Raises:
        ShardError: if the source has no such shard.
    """
    shards, _ = _read_source(source)
    for shard in shards:
        if shard.key == key:
            return shard
    known = ", ".join(shard.key for shard in shards[:5]) or "none"
    raise ShardError(
        f"shard {key!r} is not in the source {source.url!r} (it has {len(shards)}: {known}"
        f"{', …' if len(shards) > 5 else ''}): check the partition's name and CAPTION_SOURCE"
    )


def shard_content(source: Root, shard: Shard) -> ShardContent:
    """The content of a shard, from a listing of its files. That of a list is the list file alone, without its clips.

    Raises:
        StoreError: if the shard cannot be listed.
    """
    if shard.file:
        files = [(shard.path, shard.file)]
    else:
        with translate_store_errors(f"cannot list shard {shard.key!r} in {source.url!r}"):
            files = files_below(source, shard)
    lines = sorted(json.dumps([name, file["size"], str(file.get("ETag") or file.get("mtime"))]) for name, file in files)
    version = sha256("\n".join(lines).encode()).hexdigest()[:16]
    times = [_modification_time(file) for _, file in files]
    past = [time for time in times if time - datetime.now(UTC) <= CLOCK_TOLERANCE]
    return ShardContent(version, max(past or times, default=None), len(times) - len(past))


def _modification_time(file: Mapping[str, Any]) -> datetime:
    """The modification time of an S3 object or a local file, limited to the years that ``datetime`` supports."""
    if "LastModified" in file:
        return file["LastModified"]  # type: ignore[no-any-return]
    try:
        return datetime.fromtimestamp(file["mtime"], UTC)
    except (ValueError, OverflowError, OSError):
        return (datetime.max if file["mtime"] > 0 else datetime.min).replace(tzinfo=UTC)


def files_below(source: Root, shard: Shard) -> list[tuple[str, Mapping[str, Any]]]:
    """Names and entries of the videos and sidecar files in a folder, without hidden ones.

    A link to a folder is listed but not followed.
    """
    return [
        (name, entry)
        for name, entry in all_files_below(source, shard)
        if is_video(name) or suffix(name) in (JSON_SUFFIX, TEXT_SUFFIX) or is_linked_folder(entry)
    ]


def all_files_below(source: Root, shard: Shard) -> list[tuple[str, Mapping[str, Any]]]:
    """Names and entries of all files in a folder, without hidden ones."""
    base = source.full(shard.path) + "/"
    entries = source.fs.find(base, detail=True).values()
    named = [(entry["name"].removeprefix(base).lstrip("/"), entry) for entry in entries]
    return [(name, entry) for name, entry in named if name and not is_hidden(name)]


def is_video(name: str) -> bool:
    """Whether a file's name is that of a video."""
    return suffix(name) in VIDEO_SUFFIXES


def suffix(name: str) -> str:
    """The suffix of a file's name, in lower case, with its dot."""
    return posixpath.splitext(name)[1].lower()


def is_hidden(name: str) -> bool:
    """Whether the name of a file or of a folder above it begins with a dot."""
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def is_linked_folder(entry: Mapping[str, Any]) -> bool:
    """Whether a local entry is a symbolic link to a folder."""
    return bool(entry.get("islink")) and os.path.isdir(entry["name"])


def _read_source(source: Root) -> tuple[list[Shard], dict[SkipReason, list[str]]]:
    """All shards, sorted by key, with unvalidated names; and the names of the other entries, by reason."""
    shards: list[Shard] = []
    skipped: dict[SkipReason, list[str]] = {}
    try:
        for entry in source.entries():
            name = entry["name"][len(source.path) :].removeprefix("/")
            if not name and entry["type"] == "file":
                continue  # directory marker of the source itself, an object "shards/"
            reason = _skip_reason(name.rstrip("/"), entry)
            if reason is None:
                shards.append(_as_shard(name.rstrip("/"), entry))
            else:
                skipped.setdefault(reason, []).append(printable(name) or "/")
    except FileNotFoundError as error:
        raise ShardError(
            f"the source {source.url!r} does not exist: create it, or set CAPTION_SOURCE to the folder of the shards"
        ) from error
    except StoreError as error:
        raise ShardError(f"CAPTION_SOURCE is {source.url!r}: {error}") from error
    return sorted(shards, key=lambda shard: shard.key), skipped


def _skip_reason(name: str, entry: Mapping[str, Any]) -> SkipReason | None:
    """The reason why an entry is not a shard; None if it is one."""
    ending = posixpath.splitext(name)[1]
    if name in ("", ".", ".."):
        return SkipReason.UNNAMED
    if name.startswith("."):
        return SkipReason.HIDDEN
    if entry["type"] == "directory":
        return None
    if is_linked_folder(entry):
        return SkipReason.LINKED_FOLDER
    if entry["type"] != "file" and not entry.get("islink"):
        return SkipReason.SPECIAL
    if ending in LAYOUTS:
        return None
    if is_video(name):
        return SkipReason.LOOSE_VIDEO
    if ARCHIVE.search(name):
        return SkipReason.ARCHIVE
    if ending.lower() in LAYOUTS:
        return SkipReason.SUFFIX
    return SkipReason.OTHER


def _as_shard(name: str, entry: Mapping[str, Any]) -> Shard:
    if entry["type"] == "directory":
        return Shard(name, Layout.FOLDER, name)
    stem, ending = posixpath.splitext(name)
    return Shard(stem, LAYOUTS[ending], name, entry)
