"""The listing of a shard's clips, for every layout."""

from __future__ import annotations

import io
import os
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from caption_assets.errors import UnreadableClip
from caption_assets.sources.clip import Clip, refuse_version
from caption_assets.sources.clip_key import KeyAllocator, escapes_root, normalize
from caption_assets.sources.shard import (
    ARCHIVE,
    JSON_SUFFIX,
    STILL_SUFFIXES,
    TEXT_SUFFIX,
    Layout,
    Shard,
    ShardError,
    all_files_below,
    is_hidden,
    is_linked_folder,
    is_video,
    suffix,
)
from caption_assets.sources.uri_list import listed_clips
from caption_assets.store.failure import explain
from caption_assets.store.root import Root
from caption_assets.store.span import Span

READ_AHEAD_BYTES = 64 << 10
"""Size of a request when a tar's headers are read, in bytes: one contains the headers of several small members.
fsspec's default for S3 is 50 MiB."""
MAX_HEADER_BYTES = 1 << 20
"""Maximum size of a tar header, such as a long name, in bytes. It is checked before the header is read."""
TAR_ERRORS = (tarfile.TarError, ValueError, OverflowError, RecursionError)
"""Errors that tarfile raises for damaged headers: its own, and built-in ones for absurd numbers or chains."""
NAMED_FILES = 20
"""Maximum number of other files that are listed by name."""
SHOWN_SUFFIXES = 10
"""Maximum number of suffixes in one message."""
SIDECAR_SUFFIXES = (JSON_SUFFIX, TEXT_SUFFIX)
"""Suffixes of sidecar files, which belong to the video with the same stem."""


@dataclass(slots=True)
class OtherFiles:
    """Counter of a shard's files that are neither clips nor sidecar files."""

    count: int = 0
    by_suffix: Counter[str] = field(default_factory=Counter)
    first_names: list[str] = field(default_factory=list)
    """The first ``NAMED_FILES`` names."""

    def add(self, name: str) -> None:
        """Count a file."""
        self.count += 1
        self.by_suffix[_shown_suffix(name)] += 1
        if len(self.first_names) < NAMED_FILES:
            self.first_names.append(normalize(name))


def list_clips(source: Root, shard: Shard, others: OtherFiles | None = None) -> Iterator[Clip]:
    """List the clips of a shard: sorted by key in folders and tars, in the list's order in lists.

    Refused clips are included. Only the headers of tars are read, and lists are read as far as the iteration needs.
    Each clip of a list is looked up in its store.

    Args:
        source: the root that contains the shard.
        shard: the shard to list.
        others: counts the shard's other files, before the first clip is yielded.

    Raises:
        ShardError: if a tar or list is invalid, or is a symbolic link out of the source, or if the shard has no clips.
    """
    others = OtherFiles() if others is None else others
    if not source.contains(shard.path):
        raise ShardError(
            f"shard {shard.key!r} is a link to a path outside the source {source.url!r}: replace it with the file"
        )
    match shard.layout:
        case Layout.FOLDER:
            clips: Iterable[Clip] = _clips(_folder_files(source, shard), others)
        case Layout.TAR:
            clips = _clips(_tar_files(source, shard), others)
        case Layout.LIST:
            clips = listed_clips(source, shard)
    is_empty = True
    for clip in clips:
        is_empty = False
        yield clip
    if is_empty:
        raise ShardError(f"shard {shard.key!r} has no clips: {_content(shard, others)}")


def _content(shard: Shard, others: OtherFiles) -> str:
    """A description of the content of a shard without clips."""
    if shard.layout is Layout.LIST:
        return "the list has no rows"
    if not others.count:
        return "it is empty"
    suffixes = ", ".join(sorted(others.by_suffix)[:SHOWN_SUFFIXES])
    return f"{others.count} other files{f' ({suffixes})' if suffixes else ''}"


@dataclass(frozen=True, slots=True)
class _File:
    """A file of a folder or a member of a tar."""

    name: str
    """Name in the folder or tar."""
    span: Span
    refusal: UnreadableClip | None
    """The reason if the file must not be opened."""
    is_clip: bool = True
    """Whether it is listed as a clip."""


def _clips(files: Iterable[_File], others: OtherFiles) -> list[Clip]:
    """The videos among a shard's files, with their sidecar files, sorted by key."""
    videos: list[_File] = []
    stills: list[_File] = []
    sidecars: dict[str, _File] = {}
    for file in files:
        ending = suffix(file.name)
        if ending in SIDECAR_SUFFIXES:
            if not escapes_root(file.name):
                sidecars.setdefault(_sidecar_name(file.name, ending), file)
        elif ending in STILL_SUFFIXES:
            stills.append(file)
        elif file.is_clip:
            videos.append(file)
        else:
            others.add(file.name)
    stems = {_sidecar_name(video.name, "") for video in videos}
    for still in stills:
        if _sidecar_name(still.name, "") in stems:
            others.add(still.name)
        else:
            videos.append(still)
    if not videos:
        for name in sidecars:
            others.add(name)
    keys = KeyAllocator()
    clips = []
    for video in sorted(videos, key=_accepted_first):
        json_file, text = (sidecars.get(_sidecar_name(video.name, ending)) for ending in SIDECAR_SUFFIXES)
        refusals = [file.refusal for file in (video, json_file, text) if file and file.refusal]
        key, refusal = keys.allocate(video.name, refusals[0] if refusals else None)
        clips.append(Clip(key, video.span, _span(json_file), _span(text), refusal=refusal))
    return sorted(clips, key=lambda clip: clip.key)


def _shown_suffix(name: str) -> str:
    """A file's suffix, which is double for compressed archives; its name if it has no suffix."""
    found = ARCHIVE.search(name)
    return found[0].lower() if found else suffix(name) or posixpath.basename(normalize(name))


def _span(file: _File | None) -> Span | None:
    return file.span if file else None


def _sidecar_name(name: str, ending: str) -> str:
    return posixpath.splitext(normalize(name))[0] + ending


def _accepted_first(file: _File) -> tuple[str, bool]:
    """Sort key: by clip key, with refused files after accepted ones of the same key."""
    return normalize(file.name), file.refusal is not None or escapes_root(file.name)


def _folder_files(source: Root, shard: Shard) -> Iterator[_File]:
    for name, entry in all_files_below(source, shard):
        url = source.fs.unstrip_protocol(entry["name"])
        refusal = _refuse_entry(source, posixpath.join(shard.path, name), entry) or refuse_version(url)
        size = 0 if refusal else int(entry["size"])
        is_clip = is_video(name) or is_linked_folder(entry)
        yield _File(name, Span(url, 0, size, entry.get("ETag") or None, source.access), refusal, is_clip)


def _refuse_entry(source: Root, path: str, entry: Mapping[str, Any]) -> UnreadableClip | None:
    name = posixpath.basename(path)
    if entry.get("islink"):
        if not source.contains(path):
            return UnreadableClip("link", f"{name!r} is a link to a path outside the source: replace it with the file")
        if os.path.isdir(entry["name"]):
            return UnreadableClip("link", f"{name!r} is a link to a folder, which is not followed: use a folder")
        if not os.path.isfile(entry["name"]):
            return UnreadableClip("link", f"{name!r} is a broken link: replace it with the file")
    elif entry["type"] != "file":
        return UnreadableClip("not_a_file", f"{name!r} is not a regular file: replace it with the video file")
    return None


def _tar_files(source: Root, shard: Shard) -> Iterator[_File]:
    path = source.full(shard.path)
    url = source.fs.unstrip_protocol(path)
    try:
        with source.fs.open(path, "rb", block_size=READ_AHEAD_BYTES, cache_type="readahead") as file:
            for member in _members(_Headers(file)):
                if not is_hidden(member.name):
                    refusal = _refuse_member(member)
                    size = 0 if refusal else member.size
                    span = Span(url, member.offset_data, size, access=source.access)
                    yield _File(member.name, span, refusal, is_video(member.name))
    except OSError as error:
        raise ShardError(f"cannot read shard {shard.key!r} in {source.url!r}: {explain(error)}") from error
    except TAR_ERRORS as error:
        raise ShardError(
            f"shard {shard.key!r} is not a valid uncompressed tar ({error}): write it again, without compression"
        ) from error


def _members(file: _Headers) -> Iterator[tarfile.TarInfo]:
    """All members except folders. Raises one of ``TAR_ERRORS`` at a damaged header."""
    with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as archive:
        for member in archive:
            if member.size < 0:
                raise tarfile.ReadError("a member of negative size")  # tarfile would seek back and loop forever
            if not member.isdir():
                yield member
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile treats an invalid header as the end of the archive
            raise tarfile.ReadError(f"the header at byte {archive.offset} is damaged")
        empty = 0
        while rest := file.read(tarfile.RECORDSIZE):
            empty += len(rest)
            if rest.strip(b"\0"):  # for example tars joined by `cat` instead of `tar --concatenate`
                raise tarfile.ReadError(f"data after the end of the archive at byte {archive.offset}")
        if not archive.offset and empty >= tarfile.RECORDSIZE:  # an empty tar is one record
            raise tarfile.ReadError("only zeros")


def _refuse_member(member: tarfile.TarInfo) -> UnreadableClip | None:
    if member.issym() or member.islnk():
        return UnreadableClip("link", f"{member.name!r} is a link in its tar: store the file itself")
    if not member.isreg():
        return UnreadableClip("not_a_file", f"{member.name!r} is not a regular file in its tar: store the video file")
    if member.issparse():
        return UnreadableClip("sparse", f"{member.name!r} is a sparse file in its tar: write the tar without --sparse")
    return None


class _Headers(io.RawIOBase):
    """A tar's file for ``tarfile``: limits the size of each read to that of a header."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes, above the limit of {MAX_HEADER_BYTES}")
        return self._file.read(size)
