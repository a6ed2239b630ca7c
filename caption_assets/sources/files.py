"""Clips that a person names: files, folders, shard files and URLs, without a source or a shard."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import replace

from fsspec.core import split_protocol

from caption_assets.errors import UnreadableClip, printable
from caption_assets.sources.clip import Clip, refuse_version
from caption_assets.sources.listing import list_clips
from caption_assets.sources.shard import LAYOUTS, Layout, Shard, ShardError
from caption_assets.store.access import STANDARD, Access
from caption_assets.store.failure import StoreError, url_has_credentials
from caption_assets.store.root import Root
from caption_assets.store.span import Span

HTTP = ("http", "https")


def find_clips(paths: Iterable[str | os.PathLike[str]], access: Access = STANDARD) -> Iterator[Clip]:
    """The clips at these paths and URLs, in this order. What cannot be read is a refused clip with the reason.

    A folder, a tar or a list of clips is read like a shard: sorted, with sidecar files. A clip's key is the path as
    given; within a folder, tar or list, that path and the clip's name in it.

    Args:
        paths: local paths, and URLs of the protocols s3, http and https.
        access: access to object storage.

    Raises:
        TypeError: if a path is not a string or a path object.
    """
    for path in paths:
        name = os.fspath(path)
        if not isinstance(name, str):
            raise TypeError(f"a path must be a string or a path object, not {path!r}")
        yield from _clips_at(name, access)


def find_file(path: str | os.PathLike[str], access: Access = STANDARD) -> Span:
    """The bytes of one file.

    Raises:
        UnreadableClip: if it does not exist, is not a file, or cannot be looked up. The message names the path.
    """
    name = os.fspath(path)
    try:
        span, is_folder = _look_up(name, access)
    except UnreadableClip as error:
        raise UnreadableClip(error.kind, f"{_shown(name)}: {error}") from error
    if is_folder:
        raise UnreadableClip("not_a_file", f"{name} is a folder: give a video file")
    return span


def _clips_at(name: str, access: Access) -> Iterator[Clip]:
    try:
        span, is_folder = _look_up(name, access)
    except UnreadableClip as error:
        yield _refused(name, error)
        return
    ending = posixpath.splitext(name)[1]
    if is_folder:
        shard = Shard(posixpath.basename(name.rstrip("/")) or name, Layout.FOLDER, "")
        yield from _clips_in(name, Root.open(name, access), shard)
    elif ending in LAYOUTS and split_protocol(name)[0] not in HTTP:
        folder, file = posixpath.split(name)
        shard = Shard(file.removesuffix(ending), LAYOUTS[ending], file)
        yield from _clips_in(name, Root.open(folder or ".", access), shard)
    else:
        yield Clip(printable(name), span)


def _clips_in(name: str, source: Root, shard: Shard) -> Iterator[Clip]:
    try:
        for clip in list_clips(source, shard):
            yield replace(clip, key=posixpath.join(printable(name), clip.key))
    except (ShardError, StoreError) as error:
        yield _refused(name, UnreadableClip("unreadable", str(error)))


def _refused(name: str, reason: UnreadableClip) -> Clip:
    return Clip(_shown(name), Span("", 0, 0), refusal=reason)


def _shown(name: str) -> str:
    """A path or URL for messages, without credentials."""
    return "a URL with credentials" if url_has_credentials(name) else printable(name)


def _look_up(name: str, access: Access) -> tuple[Span, bool]:
    """The span of a file, and whether it is a folder instead.

    Raises:
        UnreadableClip: if there is neither, or it cannot be read.
    """
    if not name or "\0" in name:
        raise UnreadableClip("missing", f"{name!r} is not the name of a file")
    if url_has_credentials(name):
        raise UnreadableClip("credentials", "the URL contains credentials and is not shown: download the file first")
    protocol = split_protocol(name)[0]
    if protocol not in (None, "file", "s3", *HTTP):
        raise UnreadableClip("scheme", f"unsupported protocol {protocol}://: give a local path, s3:// or https://")
    if refusal := refuse_version(name):
        raise refusal
    try:
        root = Root.open(name, access)
        span = Span(root.fs.unstrip_protocol(root.path), 0, 0, access=access)
        info = span.info()
        if info["type"] == "directory":
            return span, True
        if info["type"] != "file":
            raise UnreadableClip("not_a_file", "it is not a regular file: give a video file")
        if protocol in HTTP and not (info["size"] and len(span.read_range(0, 1)) == 1):
            raise UnreadableClip("no_ranges", "the server does not support range requests: download the file first")
    except FileNotFoundError:
        raise UnreadableClip("missing", "the file does not exist, or cannot be reached") from None
    except StoreError as error:
        raise UnreadableClip("unreadable", str(error)) from error
    return replace(span, size=int(info["size"]), etag=info.get("ETag") if protocol == "s3" else None), False
