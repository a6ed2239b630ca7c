"""One clip of a shard: a name, and the ranges of bytes in storage that belong to it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256

from fsspec.core import url_to_fs


def content_tag(data: bytes) -> str:
    """The tag that tells a clip's content from another's: 32 hex digits of the SHA-256 of its size and its ends.

    The ends are the first and last 32 KiB, or all of it where these would overlap. What is between is not covered, so
    that the tag costs no more than these; another encoding of a film has another size, or another index in its ends.
    """
    end = 32 << 10
    ends = data if len(data) <= 2 * end else data[:end] + data[-end:]
    return sha256(f"{len(data)}:".encode() + ends).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Span:
    """A range of bytes in storage: a file of a shard, or a member of its tar."""

    url: str
    """The file that holds the bytes, with its protocol."""
    offset: int
    """Where they begin in that file."""
    size: int
    """How many they are."""
    etag: str | None = None
    """The store's own tag of the content, where the bytes are a whole object of a store that has tags."""

    def read(self) -> bytes:
        """The bytes."""
        return self.read_range(0, self.size)

    def read_range(self, start: int, end: int) -> bytes:
        """The bytes from ``start`` to before ``end``, counted from the span's beginning."""
        if end <= start:
            return b""  # a store would take an empty range for no range and send the whole file
        fs, path = url_to_fs(self.url)
        return bytes(fs.cat_file(path, start=self.offset + start, end=self.offset + end))


@dataclass(frozen=True, slots=True)
class Clip:
    """A video file of a shard, wherever its bytes lie."""

    key: str
    """Name of the clip, relative to its shard, with forward slashes. Unique within the shard."""
    video: Span
    side: Span | None = None
    """The JSON file of the same stem, if there is one."""

    def prompt(self) -> str | None:
        """The clip's own stage-1 instruction: ``prompt`` in its side file.

        Raises:
            ValueError: if the side file is no JSON object, or its prompt is no text.
        """
        if self.side is None:
            return None
        facts = json.loads(self.side.read())
        if not isinstance(facts, dict):
            raise ValueError(f"a JSON object is wanted, not {type(facts).__name__}")
        prompt = facts.get("prompt")
        if prompt is not None and not (isinstance(prompt, str) and prompt.strip()):
            raise ValueError(f"its prompt is {prompt!r}: give a text, or leave it out")
        return prompt
