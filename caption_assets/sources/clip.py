"""One clip of a shard: a name, and the ranges of bytes in storage that belong to it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from caption_assets.errors import UnreadableClip
from caption_assets.store.failure import StoreError
from caption_assets.store.span import Span

MAX_TEXT_BYTES = 1 << 20
"""A longer side file, or line of a list, is none: it would be held in memory for the sake of a prompt."""


def refuse_version(url: str) -> UnreadableClip | None:
    """Why a URL cannot be opened if s3fs would take the end of its name for the version of another object."""
    if url.startswith("s3") and "?versionId=" in url:
        return UnreadableClip("version", "the name ends in '?versionId=': name the object alone, as its latest version")
    return None


@dataclass(frozen=True, slots=True)
class ClipMetadata:
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
    json_file: Span | None = None
    """The JSON file of the same stem, if there is one."""
    text: Span | None = None
    """The text file of the same stem, if there is one."""
    columns: str | None = None
    """The further columns of a list's row, as a JSON object."""
    refusal: UnreadableClip | None = None
    """Why the clip will not be opened. Its spans are then not to be read."""

    def metadata(self) -> ClipMetadata:
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
        return ClipMetadata(prompt, extra)

    @property
    def _source(self) -> str:
        return "the clip's row of the list" if self.json_file is None else "the JSON file beside the clip"

    def _columns(self) -> dict[str, Any]:
        text = self.columns or "{}" if self.json_file is None else _text(self.json_file, self._source)
        try:
            value = json.loads(text, parse_constant=lambda _: None)  # JSON has no NaN
            # Raises where an escape is half a surrogate pair, or a number too large for any.
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self._source} cannot be used: it is no JSON ({error})") from error
        if not isinstance(value, dict):
            raise ValueError(f"{self._source} cannot be used: it holds a {type(value).__name__}, not a JSON object")
        return value


def _text(span: Span, what: str) -> str:
    if span.size > MAX_TEXT_BYTES:
        raise ValueError(f"{what} cannot be used: it has {span.size} bytes, more than {MAX_TEXT_BYTES}: shorten it")
    try:
        return span.read().decode("utf-8-sig")
    except (FileNotFoundError, StoreError, UnicodeDecodeError) as error:
        raise ValueError(f"{what} cannot be used: {error}") from error
