"""The layout of a format: its files, records and columns, and the video files that it needs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from caption_assets.errors import CaptionAssetsError
from caption_assets.export.clip import CaptionedClip, CaptionedWindow
from caption_assets.export.columns import Column, Feature
from caption_assets.export.config import Cut, ExportConfig, Format

Record = dict[str, Any]


class SharedVideo(CaptionAssetsError):
    """Several windows of one video file, in a format with one text a file."""


class Videos(Enum):
    """The video files of a format."""

    SOURCE = "source"
    """None: its records give the location of the clips in their source."""
    INSIDE = "inside"
    """Its files contain them: each clip, or each window if windows are cut."""
    CLIPS = "clips"
    """A file for each clip, beside its files of samples."""
    WINDOWS = "windows"
    """A file for each window, beside its files of samples."""


def videos_of(export: ExportConfig) -> Videos:
    """The video files of an export."""
    if export.format in (Format.WEBDATASET, Format.ENERGON):
        return Videos.INSIDE
    if export.cut.cut is not Cut.NONE:
        return Videos.WINDOWS
    return Videos.CLIPS if export.format.has_video_files else Videos.SOURCE


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample of the dataset: a clip with its windows, or a window."""

    key: str
    """Its unique key in the dataset."""
    record: Record
    window: CaptionedWindow | None = None
    """The window that it is; None if it is a clip."""


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """A sample, ready to be written."""

    key: str
    record: bytes
    """Its record as one JSON line, without its end."""
    video: bytes = b""
    """The bytes of its video file; empty in a format without videos inside its files."""

    @property
    def size(self) -> int:
        """Total size, in bytes."""
        return len(self.record) + len(self.video)


@dataclass(frozen=True, slots=True)
class MergedFile:
    """The file of the whole dataset, in the dataset's folder, for trainers that read one file."""

    name: str
    is_json: bool = False
    """Whether it is a JSON list of the lines."""
    header: bytes = b""
    """First line of each file of samples, which the merged file has once."""
    companions: Mapping[str, bytes] = field(default_factory=dict)
    """Further files in the dataset's folder, by name: descriptions of the merged file for its trainer."""


def encode_record(record: Record) -> bytes:
    """A record as one JSON line."""
    return json.dumps(record, ensure_ascii=False).encode()


def no_limit(window: CaptionedWindow) -> CaptionedWindow | str:
    """The limit of a format without any."""
    return window


def no_sidecars(clip: CaptionedClip) -> Iterator[tuple[str, bytes]]:
    """The sidecars of a format without any."""
    return iter(())


def no_indexes(path: Path) -> Iterator[tuple[str, bytes]]:
    """The indexes of a file of samples without any."""
    return iter(())


@dataclass(frozen=True, slots=True)
class FormatLayout:
    """The layout of one format."""

    name: str
    """Its name, for descriptions."""
    suffix: str
    """Suffix of its files."""
    videos: Videos
    """The video files that it needs."""
    write: Callable[[IO[bytes], Iterable[EncodedSample]], int]
    """Writes a file of samples, and returns their number."""
    samples: Callable[[CaptionedClip], list[Sample]]
    """The samples of a clip."""
    features: list[Feature] | None
    """Types of the columns, for the front matter of the card; None to let ``datasets`` infer them."""
    columns: tuple[tuple[str, tuple[Column, ...]], ...]
    """The columns by heading, for the card's tables."""
    sidecars: Callable[[CaptionedClip], Iterator[tuple[str, bytes]]] = no_sidecars
    """Name and content of the files that belong to the video files of a clip, in the shard's folder."""
    encode: Callable[[Record], bytes] = encode_record
    """A record as bytes, for ``write``."""
    file_indexes: Callable[[Path], Iterator[tuple[str, bytes]]] = no_indexes
    """Suffix and content of the indexes of a file of samples, which lie beside it."""
    limit: Callable[[CaptionedWindow], CaptionedWindow | str] = no_limit
    """Returns a window that its trainer loads, or the reason why the trainer would drop it."""
    merged: MergedFile | None = None
    """The file of the whole dataset, if the format has one."""

    @property
    def pattern(self) -> str:
        """Pattern of the names of its files in a shard's folder, which no other file there has."""
        return f"*-*.{self.suffix}" if self.suffix == "json" else f"*.{self.suffix}"

    @property
    def contains_clips(self) -> bool:
        """Whether the files contain the clips."""
        return self.videos is Videos.INSIDE


def sample_key(clip: CaptionedClip) -> str:
    """A clip's key in the dataset: 24 hex digits, a hash of its shard, name and content.

    The clip's own name is not usable. webdataset ends a key at the first dot, and names are untrusted.
    """
    identity = json.dumps([clip.shard, clip.row.clip_key, clip.row.content_tag])
    return sha256(identity.encode()).hexdigest()[:24]


def window_key(clip: CaptionedClip, window: CaptionedWindow) -> str:
    """A window's key in the dataset: its clip's and its number."""
    return f"{sample_key(clip)}-{window.row.window_index}"


def check_own_files(clip: CaptionedClip) -> None:
    """Check that no two windows of a clip share a file.

    Raises:
        SharedVideo: if they do.
    """
    paths = [window.video.path for window in clip.windows if window.video is not None]
    if len(set(paths)) < len(paths):
        raise SharedVideo(
            f"clip {clip.row.clip_key!r} has {len(paths)} windows, but the format has one text for each file: set "
            "CAPTION_EXPORT_CUT=exact"
        )


def features_of(*columns: Column) -> list[Feature]:
    """The types of the columns, for the front matter of the card."""
    return [column.feature for column in columns]
