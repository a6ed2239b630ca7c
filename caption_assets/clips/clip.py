"""One clip of a shard: a name, and the ranges of bytes in storage that belong to it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256

from fsspec import AbstractFileSystem


def content_tag(data: bytes) -> str:
    """The tag that tells a clip's content from another's: 32 hex digits of the SHA-256 of its bytes."""
    return sha256(data).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Span:
    """A range of bytes in storage: a file of a shard, or a member of its tar."""

    path: str
    """The file that holds the bytes, as the file system names it."""
    offset: int
    """Where they begin in that file."""
    size: int
    """How many they are."""

    def read(self, fs: AbstractFileSystem) -> bytes:
        """The bytes."""
        if self.size == 0:
            return b""  # a store would take an empty range for no range and send the whole file
        return bytes(fs.cat_file(self.path, start=self.offset, end=self.offset + self.size))


@dataclass(frozen=True, slots=True)
class Clip:
    """A video file of a shard, wherever its bytes lie."""

    key: str
    """Name of the clip, relative to its shard, with forward slashes. Unique within the shard."""
    video: Span
    side: Span | None = None
    """The JSON file of the same stem, if there is one."""

    def prompt(self, fs: AbstractFileSystem) -> str | None:
        """The clip's own stage-1 instruction: ``prompt`` in its side file.

        Raises:
            ValueError: if the side file is no JSON object, or its prompt is no text.
        """
        if self.side is None:
            return None
        facts = json.loads(self.side.read(fs))
        if not isinstance(facts, dict):
            raise ValueError(f"a JSON object is wanted, not {type(facts).__name__}")
        prompt = facts.get("prompt")
        if prompt is not None and not (isinstance(prompt, str) and prompt.strip()):
            raise ValueError(f"its prompt is {prompt!r}: give a text, or leave it out")
        return prompt
