"""The clips of a shard, whatever its layout."""

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
from caption_assets.sources.clip_key import KeyAllocator, escapes_root, normalise
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
"""Fetched with each of a tar's headers, for the small members behind it; fsspec's own choice for S3 is 50 MiB."""
MAX_HEADER_BYTES = 1 << 20
"""A tar that claims a longer header (a name, say) is refused, before that many bytes are read."""
TAR_ERRORS = (tarfile.TarError, ValueError, OverflowError, RecursionError)
"""What tarfile raises over damaged headers: its own errors, and bare ones where a number or a chain is absurd."""
NAMED_FILES = 20
"""Maximum number of other files that are named."""
SHOWN_SUFFIXES = 10
"""Maximum number of suffixes in one message."""
SIDECAR_SUFFIXES = (JSON_SUFFIX, TEXT_SUFFIX)
"""Suffixes of files that go with the video of their stem."""


@dataclass(slots=True)
class OtherFiles:
    """The files of a shard that are neither clips nor known to go with one, counted as they are seen."""

    count: int = 0
    by_suffix: Counter[str] = field(default_factory=Counter)
    first_names: list[str] = field(default_factory=list)
    """Up to ``NAMED_FILES``."""

    def add(self, name: str) -> None:
        """Count a file."""
        self.count += 1
        self.by_suffix[_shown_suffix(name)] += 1
        if len(self.first_names) < NAMED_FILES:
            self.first_names.append(normalise(name))


def list_clips(source: Root, shard: Shard, others: OtherFiles | None = None) -> Iterator[Clip]:
    """The shard's clips: those of folders and tars sorted by key, those of lists in the list's order.

    What looks like a clip but will not be opened is among them, with its refusal. Of tars only the
    headers are read, of lists as much as the iteration needs; each clip that a list names is looked up in its store.

    Args:
        source: which holds the shard.
        shard: whose clips to list.
        others: gets the shard's other files before the first clip is listed.

    Raises:
        ShardError: if a tar or list cannot be read as one, or is a link that leads out of the source, or if nothing in
            the shard is taken for a clip.
    """
    others = OtherFiles() if others is None else others
    if not source.holds(shard.path):
        raise ShardError(
            f"shard {shard.key!r} is a link that leads out of the source {source.url!r}: put the file itself there"
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
        raise ShardError(f"shard {shard.key!r} holds nothing to caption: {_described(shard, others)}: no clips")


def _described(shard: Shard, others: OtherFiles) -> str:
    """What was seen in a shard without clips."""
    if shard.layout is Layout.LIST:
        return "a list without rows"
    suffixes = ", ".join(sorted(others.by_suffix)[:SHOWN_SUFFIXES])
    return f"{others.count} files{': ' if suffixes else ''}{suffixes}"


@dataclass(frozen=True, slots=True)
class _File:
    """A file of a folder or a member of a tar."""

    name: str
    """As the folder or tar has it."""
    span: Span
    refusal: UnreadableClip | None
    """Why it will not be opened."""
    is_clip: bool = True
    """Whether its name is that of a video."""


def _clips(files: Iterable[_File], others: OtherFiles) -> list[Clip]:
    """The videos among a shard's files, each with those of its stem that go with it, sorted by key."""
    videos: list[_File] = []
    stills: list[_File] = []
    beside: dict[str, _File] = {}
    for file in files:
        ending = suffix(file.name)
        if ending in SIDECAR_SUFFIXES:
            if not escapes_root(file.name):
                beside.setdefault(_side_name(file.name, ending), file)
        elif ending in STILL_SUFFIXES:
            stills.append(file)
        elif file.is_clip:
            videos.append(file)
        else:
            others.add(file.name)
    stems = {_side_name(video.name, "") for video in videos}
    for still in stills:
        if _side_name(still.name, "") in stems:
            others.add(still.name)
        else:
            videos.append(still)
    if not videos:
        for name in beside:
            others.add(name)
    keys = KeyAllocator()
    clips = []
    for video in sorted(videos, key=_accepted_first):
        json_file, text = (beside.get(_side_name(video.name, ending)) for ending in SIDECAR_SUFFIXES)
        refusals = [file.refusal for file in (video, json_file, text) if file and file.refusal]
        key, refusal = keys.allocate(video.name, refusals[0] if refusals else None)
        clips.append(Clip(key, video.span, _span(json_file), _span(text), refusal=refusal))
    return sorted(clips, key=lambda clip: clip.key)


def _shown_suffix(name: str) -> str:
    """A file's suffix, of archives with the one before; its name where it has none."""
    found = ARCHIVE.search(name)
    return found[0].lower() if found else suffix(name) or posixpath.basename(normalise(name))


def _span(file: _File | None) -> Span | None:
    return file.span if file else None


def _side_name(name: str, ending: str) -> str:
    return posixpath.splitext(normalise(name))[0] + ending


def _accepted_first(file: _File) -> tuple[str, bool]:
    """By key; of files with the same key, those that will not be opened come last."""
    return normalise(file.name), file.refusal is not None or escapes_root(file.name)


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
        if not source.holds(path):
            return UnreadableClip("link", f"{name!r} is a link that leads out of the source: put the file itself there")
        if os.path.isdir(entry["name"]):
            return UnreadableClip("link", f"{name!r} is a link to a folder, and is not followed: make it a folder")
        if not os.path.isfile(entry["name"]):
            return UnreadableClip("link", f"{name!r} is a link that leads to no file: put the file itself there")
    elif entry["type"] != "file":
        return UnreadableClip("not_a_file", f"{name!r} is no regular file: put the video itself there")
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
        raise ShardError(f"shard {shard.key!r} in {source.url!r} cannot be read: {explain(error)}") from error
    except TAR_ERRORS as error:
        raise ShardError(
            f"shard {shard.key!r} cannot be read as an uncompressed tar ({error}): write it anew, without compression"
        ) from error


def _members(file: _Headers) -> Iterator[tarfile.TarInfo]:
    """Every member but folders. Raises one of ``TAR_ERRORS`` where the headers break off."""
    with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as archive:
        for member in archive:
            if member.size < 0:
                raise tarfile.ReadError("a member of negative size")  # would send tarfile back, to read it for ever
            if not member.isdir():
                yield member
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes any header that it cannot read for the end
            raise tarfile.ReadError(f"the header at byte {archive.offset} is damaged")
        empty = 0
        while rest := file.read(tarfile.RECORDSIZE):
            empty += len(rest)
            if rest.strip(b"\0"):  # one tar behind another, say, which `tar --concatenate` would have joined
                raise tarfile.ReadError(f"its end at byte {archive.offset} is not the file's")
        if not archive.offset and empty >= tarfile.RECORDSIZE:  # an empty tar is one record
            raise tarfile.ReadError("it holds nothing but zeros")


def _refuse_member(member: tarfile.TarInfo) -> UnreadableClip | None:
    if member.issym() or member.islnk():
        return UnreadableClip("link", f"{member.name!r} is a link in its tar: put the file itself there")
    if not member.isreg():
        return UnreadableClip("not_a_file", f"{member.name!r} is no regular file in its tar: put the video there")
    if member.issparse():
        return UnreadableClip("sparse", f"{member.name!r} has holes in its tar: write the tar without --sparse")
    return None


class _Headers(io.RawIOBase):
    """A tar's file as ``tarfile`` is to see it: no more is read at a time than a header may have."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes, where {MAX_HEADER_BYTES} are the most")
        return self._file.read(size)
