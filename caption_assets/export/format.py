"""The two forms of the dataset: webdataset tars, and lines of JSON."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from io import BytesIO
from typing import IO, Any

from caption_assets.export.clip import CaptionedClip
from caption_assets.export.columns import (
    OF_CLIP,
    OF_PLACE,
    OF_STAGES,
    OF_WINDOW,
    SHARD,
    Column,
    Feature,
    clip_record,
    window_record,
)

LAYOUT_VERSION = "2"
"""Goes up when the same tables would give other files."""
VIDEO = "mp4"
"""Ending of the clip in its sample, whatever its container: ``datasets`` makes a column of each ending, and wants the
same ones in all samples. Decoders look at the bytes."""

Record = dict[str, Any]


class Format(StrEnum):
    """The forms by name."""

    WEBDATASET = "webdataset"
    JSONL = "jsonl"


@dataclass(frozen=True, slots=True)
class ClipSamples:
    """A clip as it goes into a file."""

    key: str
    """Unlike any other's in the dataset."""
    records: tuple[bytes, ...]
    """As JSON, one for each sample."""
    video: bytes
    """The clip itself; none if the form does without."""

    @property
    def size(self) -> int:
        """Bytes of all that."""
        return sum(map(len, self.records)) + len(self.video)


def _write_tar(file: IO[bytes], clips: Iterable[ClipSamples]) -> int:
    """A webdataset tar with one sample a clip: ``<key>.json`` and ``<key>.mp4``."""
    samples = 0
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for clip in clips:
            for ending, data in zip(("json", VIDEO), (*clip.records, clip.video), strict=True):
                info = tarfile.TarInfo(f"{clip.key}.{ending}")  # no owner and no time: the same samples, the same tar
                info.size = len(data)
                tar.addfile(info, BytesIO(data))
            samples += 1
    return samples


def _write_lines(file: IO[bytes], clips: Iterable[ClipSamples]) -> int:
    """A line of JSON for each window."""
    samples = 0
    for clip in clips:
        file.writelines(record + b"\n" for record in clip.records)
        samples += len(clip.records)
    return samples


@dataclass(frozen=True, slots=True)
class Form:
    """How the dataset is written in one format."""

    name: str
    """For a person."""
    suffix: str
    """Of its files."""
    holds_clips: bool
    """Whether the clips' bytes are part of it."""
    write: Callable[[IO[bytes], Iterable[ClipSamples]], int]
    """Write a file of samples, and return how many they are."""
    records: Callable[[CaptionedClip], list[Record]]
    """Those of a clip, one for each of its samples."""
    features: list[Feature]
    """Types of the columns, as the front matter of a card has them."""
    columns: tuple[tuple[str, tuple[Column, ...]], ...]
    """The same for a person, in groups that each have a heading."""


def _sample(clip: CaptionedClip) -> list[Record]:
    return [{**clip_record(clip, OF_CLIP), "windows": [window_record(window) for window in clip.windows]}]


def _lines(clip: CaptionedClip) -> list[Record]:
    facts = clip_record(clip, OF_CLIP + OF_PLACE)
    return [{**facts, **window_record(window)} for window in clip.windows]


def _features(*columns: Column) -> list[Feature]:
    return [column.feature for column in columns]


FORMS = {
    Format.WEBDATASET: Form(
        name="webdataset tars",
        suffix="tar",
        holds_clips=True,
        write=_write_tar,
        records=_sample,
        features=[
            {
                "name": "json",
                "struct": [
                    *_features(SHARD, *OF_CLIP),
                    {"name": "windows", "list": _features(*OF_WINDOW, *OF_STAGES)},
                ],
            },
            {"name": VIDEO, "dtype": "video"},
            {"name": "__key__", "dtype": "string"},
            {"name": "__url__", "dtype": "string"},
        ],
        columns=(
            ("`json`: the clip", (SHARD, *OF_CLIP)),
            ("`json.windows`: each of its windows, in order", (*OF_WINDOW, *OF_STAGES)),
        ),
    ),
    Format.JSONL: Form(
        name="JSON lines",
        suffix="jsonl",
        holds_clips=False,
        write=_write_lines,
        records=_lines,
        features=_features(SHARD, *OF_CLIP, *OF_PLACE, *OF_WINDOW, *OF_STAGES),
        columns=(
            ("The clip", (SHARD, *OF_CLIP, *OF_PLACE)),
            ("The window", (*OF_WINDOW, *OF_STAGES)),
        ),
    ),
}


@dataclass(frozen=True, slots=True)
class Export:
    """How the dataset is to be written."""

    format: Format
    file_bytes: int
    """Of clips and records, the most in one file; a clip that has more gets a file of its own."""
    licence: str | None = None
    """For the card: an SPDX identifier as the Hub writes it, such as ``cc-by-4.0``."""

    @property
    def form(self) -> Form:
        """What that is."""
        return FORMS[self.format]

    @property
    def version(self) -> str:
        """Changes when the same tables would give other files."""
        return f"{LAYOUT_VERSION}-{self.format}-{self.file_bytes}"


def sample_key(clip: CaptionedClip) -> str:
    """A name for a clip's sample: 24 hex digits that change with its shard, its name there, and its content.

    Not the clip's own name: webdataset ends a sample's name at the first dot, and names come from strangers.
    """
    named = json.dumps([clip.shard, clip.row.clip_key, clip.row.content_tag])
    return sha256(named.encode()).hexdigest()[:24]


def encoded(record: Record) -> bytes:
    """A record as one line of JSON."""
    return json.dumps(record, ensure_ascii=False).encode()
