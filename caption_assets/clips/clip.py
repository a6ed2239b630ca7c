"""One clip of a shard: a name, and the ranges of bytes in storage that belong to it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import xxhash
from fsspec import AbstractFileSystem

from caption_assets.clips.container import UnreadableClip
from caption_assets.store.access import STANDARD, Access
from caption_assets.store.failure import StoreError, clear_errors

MAX_TEXT_BYTES = 1 << 20
"""A longer side file, or line of a list, is none: it would be held in memory for the sake of a prompt."""
END_BYTES = 32 << 10
"""Bytes at each end of a clip that are fetched first: a container's index or its first frames lie there."""


class PiecewiseTag:
    """The content tag of bytes that come in pieces: XXH3's 128 bits as 32 hex digits.

    It covers every byte, and nothing else: a clip keeps its tag wherever it lies and whoever copied it.
    """

    def __init__(self) -> None:
        self.size = 0
        """Bytes so far."""
        self._hash = xxhash.xxh3_128()

    def add(self, piece: bytes | memoryview) -> None:
        """Take the next bytes into account."""
        self.size += len(piece)
        self._hash.update(piece)

    def value(self) -> str:
        """The tag of all bytes so far."""
        return self._hash.hexdigest()


def content_tag(data: bytes) -> str:
    """The content tag of a clip whose store has none: ``PiecewiseTag`` of all of its bytes."""
    tag = PiecewiseTag()
    tag.add(data)
    return tag.value()


def etag_tag(etag: str) -> str:
    """The content tag of an object that its store has tagged itself: 32 hex digits, too."""
    return sha256(f"etag:{etag}".encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Span:
    """A range of bytes in storage: a file of a shard, or a member of its tar."""

    url: str
    """The file that holds the bytes: its protocol, ``://``, and its path as the file system names it, unescaped."""
    offset: int
    """Where they begin in that file."""
    size: int
    """How many they are."""
    etag: str | None = None
    """The store's own tag of the content, where the bytes are a whole object of a store that has tags."""
    access: Access = STANDARD
    """How the storage is reached."""

    def info(self) -> dict[str, Any]:
        """What the store says of the file: fsspec's ``size`` and ``type``, and the ``ETag`` where it has one.

        Raises:
            FileNotFoundError: if there is none.
            StoreError: if the store does not say.
        """
        with clear_errors(f"{self.url} cannot be looked up"):
            fs, path = self._place()
            return dict(fs.info(path))

    def read(self) -> bytes:
        """The bytes.

        Raises:
            FileNotFoundError: if there is no such file.
            StoreError: if they cannot be read.
        """
        return self.read_range(0, self.size)

    def read_range(self, start: int, end: int) -> bytes:
        """The bytes from ``start`` to before ``end``, counted from the span's beginning.

        Raises:
            FileNotFoundError: if there is no such file.
            StoreError: if they cannot be read.
        """
        if end <= start:
            return b""  # a store would take an empty range for no range and send the whole file
        with clear_errors(f"{self.url} cannot be read"):
            fs, path = self._place()
            return bytes(fs.cat_file(path, start=self.offset + start, end=self.offset + end))

    def _place(self) -> tuple[AbstractFileSystem, str]:
        """The file system that holds the file, and its path there.

        Not by ``url_to_fs``, which takes ``::`` in a file's name for a chain of file systems.
        """
        protocol, path = self.url.split("://", 1)
        return self.access.filesystem(protocol), path


def refuse_version(url: str) -> UnreadableClip | None:
    """Why a URL cannot be opened if s3fs would take the end of its name for the version of another object."""
    if url.startswith("s3") and "?versionId=" in url:
        return UnreadableClip("version", "the name ends in '?versionId=': name the object alone, as its latest version")
    return None


@dataclass(frozen=True, slots=True)
class Facts:
    """What is said of a clip beside its video."""

    prompt: str | None
    """Its own stage-1 instruction."""
    extra: dict[str, Any]
    """All else, as JSON has it; its text file under ``txt``."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A video file of a shard, wherever its bytes lie."""

    key: str
    """Name of the clip, relative to its shard, with forward slashes. Unique within the shard."""
    video: Span
    side: Span | None = None
    """The JSON file of the same stem, if there is one."""
    text: Span | None = None
    """The text file of the same stem, if there is one."""
    columns: str | None = None
    """The further columns of a list's row, as a JSON object."""
    refusal: UnreadableClip | None = None
    """Why the clip will not be opened. Its spans are then not to be read."""

    def facts(self) -> Facts:
        """What is said of the clip where it is listed: in its row of the list, or in the files beside it.

        Raises:
            ValueError: if the JSON file is no JSON object, its prompt no text, or the text file not UTF-8.
        """
        extra = self._columns()
        prompt = extra.pop("prompt", None)
        if prompt is not None and not (isinstance(prompt, str) and prompt.strip()):
            raise ValueError(f"{self._source} cannot be used: its prompt is {prompt!r}: give a text, or leave it out")
        if self.text is not None:
            extra["txt"] = _text(self.text, "the text file beside the clip")
        return Facts(prompt, extra)

    @property
    def _source(self) -> str:
        return "the clip's row of the list" if self.side is None else "the JSON file beside the clip"

    def _columns(self) -> dict[str, Any]:
        text = self.columns or "{}" if self.side is None else _text(self.side, self._source)
        try:
            facts = json.loads(text, parse_constant=lambda _: None)  # JSON has no NaN
            # Raises where an escape is half a surrogate pair, or a number too large for any.
            json.dumps(facts, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self._source} cannot be used: it is no JSON ({error})") from error
        if not isinstance(facts, dict):
            raise ValueError(f"{self._source} cannot be used: it holds a {type(facts).__name__}, not a JSON object")
        return facts


def _text(span: Span, what: str) -> str:
    if span.size > MAX_TEXT_BYTES:
        raise ValueError(f"{what} cannot be used: it has {span.size} bytes, more than {MAX_TEXT_BYTES}: shorten it")
    try:
        return span.read().decode("utf-8-sig")
    except (FileNotFoundError, StoreError, UnicodeDecodeError) as error:
        raise ValueError(f"{what} cannot be used: {error}") from error
