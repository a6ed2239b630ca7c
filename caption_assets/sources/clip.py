"""A clip of a shard: its key, and the spans in storage of its video and sidecar files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from caption_assets.errors import UnreadableClip
from caption_assets.store.failure import StoreError
from caption_assets.store.span import Span

MAX_TEXT_BYTES = 1 << 20
"""Maximum size of a sidecar file or of a line of a list, in bytes: these are read into memory."""


def refuse_version(url: str) -> UnreadableClip | None:
    """A refusal of a URL if s3fs would parse its end as an object version; None for other URLs."""
    if url.startswith("s3") and "?versionId=" in url:
        return UnreadableClip("version", "the name contains '?versionId=': remove it; the latest version is read")
    return None


@dataclass(frozen=True, slots=True)
class ClipMetadata:
    """The metadata of a clip in its sidecar files or its row of a list."""

    prompt: str | None
    """Stage-1 instruction for this clip."""
    extra: dict[str, Any]
    """All other values, as parsed from JSON, and the content of the text file as ``txt``."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A video file of a shard, in any layout."""

    key: str
    """Name of the clip, relative to its shard, with forward slashes. Unique within the shard."""
    video: Span
    json_file: Span | None = None
    """The JSON file with the same stem."""
    text_file: Span | None = None
    """The text file with the same stem."""
    columns: str | None = None
    """The additional columns of a list's row, as a JSON object."""
    refusal: UnreadableClip | None = None
    """The reason if the clip is refused: its spans must not be read."""

    def metadata(self) -> ClipMetadata:
        """Read the clip's metadata from its row of the list, or from its sidecar files.

        Raises:
            ValueError: if the JSON file is not a JSON object, its prompt is not text, or the text file is not UTF-8.
        """
        extra = self._columns()
        prompt = extra.pop("prompt", None)
        if prompt is not None and not (isinstance(prompt, str) and prompt.strip()):
            raise ValueError(f"invalid prompt {prompt!r} in {self._source}: write a non-empty string, or remove it")
        if self.text_file is not None:
            extra["txt"] = _text(self.text_file, "the clip's text file")
        return ClipMetadata(prompt, extra)

    @property
    def _source(self) -> str:
        return "the clip's row of the list" if self.json_file is None else "the clip's JSON file"

    def _columns(self) -> dict[str, Any]:
        text = self.columns or "{}" if self.json_file is None else _text(self.json_file, self._source)
        try:
            value = json.loads(text, parse_constant=lambda _: None)  # JSON has no NaN
            # Raises if an escape is half a surrogate pair, or a number is too large for a float.
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self._source} is not valid JSON ({error})") from error
        if not isinstance(value, dict):
            raise ValueError(f"{self._source} contains a {type(value).__name__}: write a JSON object")
        return value


def _text(span: Span, what: str) -> str:
    if span.size > MAX_TEXT_BYTES:
        raise ValueError(f"{what} has {span.size} bytes, above the limit of {MAX_TEXT_BYTES}: shorten it")
    try:
        return span.read().decode("utf-8-sig")
    except (FileNotFoundError, StoreError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {what}: {error}") from error
