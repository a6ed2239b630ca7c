"""The tables that the assets publish: their rows, their schemas, and reading and writing them whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cache
from hashlib import sha256
from typing import Annotated, TypeVar

import pyarrow as pa

from caption_assets.store.disk import temporary_folder
from caption_assets.store.root import Root
from caption_assets.store.row_schema import row_schema
from caption_assets.store.table_file import ROW_GROUP as ROW_GROUP
from caption_assets.store.table_file import SCHEMA_VERSION as SCHEMA_VERSION
from caption_assets.store.table_file import TableError as TableError
from caption_assets.store.table_file import TableFile, with_file_metadata, write_table

CLIP_MANIFEST = "clip_manifest"
"""Name of the table of windows. A table's name is also its folder below the root and its asset; the table of a stage's
captions has the name of the stage."""


Int64 = Annotated[int, pa.int64()]
"""A number that 32 bits may not hold; columns of plain ``int`` have 32."""
SAMPLING = pa.struct(
    [
        ("temperature", pa.float64()),
        ("top_p", pa.float64()),
        ("repetition_penalty", pa.float64()),
        ("max_output_tokens", pa.int32()),
        ("seed", pa.int64()),
    ]
)


class Status(StrEnum):
    """Whether a row holds what it is for."""

    OK = "ok"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One window of a clip; or a whole clip that yields none, with ``window_index`` null and the reason."""

    clip_key: str
    """Name of the clip, relative to its shard."""
    window_index: int | None
    """Number of the window within its clip, from 0."""
    window_id: str
    """Hash of clip key, window index and content tag."""
    content_tag: str
    """Hash of all of the clip's bytes, or of the store's own tag; empty if they could not be read."""
    bytes: Int64
    """Length of the clip's file."""
    status: Status
    uri: str = ""
    """File that holds the clip's bytes: relative to the source where it lies in there, else a URL."""
    offset: Int64 = 0
    """Where they begin in that file."""
    error_kind: str | None = None
    error: str | None = None
    """Why the clip yields no window, for a person."""
    codec: str | None = None
    width: int | None = None
    """Pixels as displayed: square, and turned by ``rotation``."""
    height: int | None = None
    """Pixels as displayed: square, and turned by ``rotation``."""
    rotation: int | None = None
    """Degrees counter-clockwise by which decoded frames are to be turned: 0, 90, 180 or 270."""
    mirrored: bool | None = None
    """Whether left and right of decoded frames change places before they are turned."""
    pixel_format: str | None = None
    """FFmpeg's name."""
    bit_depth: int | None = None
    """Bits of one sample."""
    interlaced: bool | None = None
    """Whether pictures are made of two fields."""
    has_audio: bool | None = None
    clip_frames: int | None = None
    """Frames of the whole clip."""
    clip_fps: float | None = None
    """Average frames per second of the whole clip."""
    variable_fps: bool | None = None
    """Whether some frames of the clip are shown longer than others."""
    clip_seconds: float | None = None
    """Length of the whole clip."""
    start_frame: int | None = None
    """First frame of the window, in order of presentation."""
    end_frame: int | None = None
    """One past its last frame."""
    start_seconds: float | None = None
    """When the window begins, from the beginning of the clip."""
    end_seconds: float | None = None
    """When the window ends, from the beginning of the clip."""
    prompt: str | None = None
    """Stage-1 instruction that the clip brings with it, in place of the run's."""
    extra: str | None = None
    """What else is known of the clip where it is listed, as a JSON object."""

    @property
    def key(self) -> tuple[str, int | None]:
        """What tells this row from the others of its table."""
        return self.clip_key, self.window_index


@dataclass(frozen=True, slots=True)
class CaptionRow:
    """One window's caption of one stage, and how it was made."""

    clip_key: str
    """As in the manifest."""
    window_index: int | None
    """As in the manifest."""
    window_id: str
    """As in the manifest."""
    start_seconds: float | None
    """As in the manifest."""
    end_seconds: float | None
    """As in the manifest."""
    status: Status
    error_kind: str | None = None
    error: str | None = None
    """Why there is no caption, for a person."""
    caption: str | None = None
    finish_reason: str | None = None
    """``stop`` if the model ended its answer, ``length`` if it was cut off."""
    flags: Sequence[str] = ()
    """What is wrong with the caption as a text; see ``captioning.quality``."""
    reductions: Sequence[str] = ()
    """What was taken from the window to make it fit or go through: ``fewer_frames``, ``smaller_frames``."""
    model: str | None = None
    """Hub id."""
    revision: str | None = None
    lora: str | None = None
    """Hub id of the LoRA adapter on the model; null if there is none, and in rows of older versions."""
    lora_revision: str | None = None
    prompt_name: str | None = None
    prompt_hash: str | None = None
    """Hash of this stage's instruction, before a stage-1 caption is put in."""
    sampling: Annotated[Mapping[str, float | None], SAMPLING] | None = None
    """Temperature, top_p, repetition penalty, output limit and seed."""
    frame_indices: Sequence[int] | None = None
    """Frames that the model saw, by their number within the clip, without those that its own processor drops. Null, as
    are the next column and the frame size, where that processor's output does not show it."""
    frame_fps: float | None = None
    """Frames per second of those frames."""
    frames_replaced: int | None = None
    """Number of those frames whose own picture cannot be decoded, so that an earlier one was shown. Null in rows of
    versions that refused such windows."""
    frames_padded: int | None = None
    """Number of frames with another shape than the clip: it changes size midway, and black bars fill the frame."""
    frame_width: int | None = None
    """Pixels, as the model saw it: after its own processor, which may resize."""
    frame_height: int | None = None
    """Pixels, as the model saw it: after its own processor, which may resize."""
    prompt_tokens: int | None = None
    """Tokens of the prompt, the video's included."""
    cached_tokens: int | None = None
    """Those of them that came from the prefix cache."""
    output_tokens: int | None = None
    attempts: int = 0
    """Requests made for this caption, over all runs; one more for each time that its frames could not be had."""
    engine_settings: str | None = None
    """Version of vLLM and hash of the engine's settings under which the row was made; null in rows of older
    versions."""
    fingerprint: str | None = None
    """Hash of all that decides the caption's text: clip, frames, prompt, model and sampling."""
    stage1_fingerprint: str | None = None
    """Stage 2 only: the fingerprint of the stage-1 row whose caption was in the prompt."""

    @property
    def key(self) -> tuple[str, int | None]:
        """What tells this row from the others of its table."""
        return self.clip_key, self.window_index


@dataclass(frozen=True, slots=True)
class CaptionFile:
    """The content of one file of captions: a published table or a checkpoint."""

    table: str
    """Name of the stage's table."""
    rows: Sequence[CaptionRow]
    metadata: Mapping[str, str]
    """File metadata."""

    @classmethod
    def read(cls, table: str, file: TableFile) -> CaptionFile:
        """All of a file's rows, or none: a damaged page makes the others doubtful.

        Raises:
            TableError: if the file is damaged.
        """
        return cls(table, list(caption_rows(file)), file.file_metadata)


R = TypeVar("R", ManifestRow, CaptionRow)


@cache
def schema_of(table: str) -> pa.Schema:
    """The columns of a table, given its name."""
    if table == CLIP_MANIFEST:
        return row_schema(ManifestRow)
    columns = row_schema(CaptionRow)
    return columns if table == "stage2_captions" else columns.remove(columns.get_field_index("stage1_fingerprint"))


def extent(row: ManifestRow | CaptionRow) -> tuple[str, float | None, float | None]:
    """Which stretch of which content a row is of: clips that were cut anew keep their windows' ids."""
    return row.window_id, row.start_seconds, row.end_seconds


def window_id(clip_key: str, window_index: int | None, content_tag: str) -> str:
    """The id of a window: 24 hex digits that change with the clip's name, the window's number or the clip's content."""
    return sha256(json.dumps([clip_key, window_index, content_tag]).encode()).hexdigest()[:24]


def stored_shards(root: Root, table: str) -> frozenset[str]:
    """The shards that have a table, by one listing of the table's folder. An empty file counts as none.

    Raises:
        StoreError: if the folder cannot be listed.
    """
    before, after = table_path(table, "*").split("*")
    return frozenset(
        shard
        for path, size in root.sizes(table).items()
        if path.endswith(after) and size and "/" not in (shard := path.removeprefix(before).removesuffix(after))
    )


def table_path(table: str, shard: str) -> str:
    """Where a shard's table lies, relative to the root: one file of a Hive-partitioned dataset."""
    name = "manifest" if table == CLIP_MANIFEST else "captions"
    return f"{table}/shard={shard}/{name}.parquet"


def publish_manifest(
    root: Root,
    shard: str,
    rows: Iterable[ManifestRow],
    metadata: Mapping[str, str],
    conclude: Callable[[], Mapping[str, str]] = dict,
) -> str:
    """Write a shard's manifest as its rows come, publish it in one atomic step and return its path.

    Args:
        root: where to.
        shard: the shard's key.
        rows: of all its clips.
        metadata: file metadata.
        conclude: further file metadata, computed after the last row. If it raises, nothing is published.

    Raises:
        TableError: if two rows have the same key; nothing is published then.
    """
    return _publish(root, CLIP_MANIFEST, shard, _unique(shard, rows), metadata, conclude)


def _unique(shard: str, rows: Iterable[ManifestRow]) -> Iterator[ManifestRow]:
    seen = set()
    for row in rows:
        if row.key in seen:
            raise TableError(
                f"the manifest of shard {shard!r} holds {row.clip_key!r} twice: two clips of the shard have this name; "
                "rename one of them"
            )
        seen.add(row.key)
        yield row


def publish_captions(
    root: Root,
    table: str,
    shard: str,
    rows: Sequence[CaptionRow],
    keys: Iterable[tuple[str, int | None]],
    metadata: Mapping[str, str],
) -> str:
    """Write a shard's captions in one atomic step and return the path.

    Args:
        root: where to.
        table: the stage.
        shard: the shard's key.
        rows: one for each of ``keys``, in that order.
        keys: the keys of the manifest's rows, in order.
        metadata: file metadata.

    Raises:
        TableError: if the rows are not exactly those of the manifest.
    """
    expected, found = list(keys), [row.key for row in rows]
    if found != expected:
        missing, extra = set(expected) - set(found), set(found) - set(expected)
        raise TableError(
            f"{table} of shard {shard!r} has {len(found)} rows for {len(expected)} of the manifest ({len(missing)} "
            f"missing, {len(extra)} too many, or out of order): nothing was published"
        )
    return _publish(root, table, shard, rows, metadata)


def _publish(
    root: Root,
    table: str,
    shard: str,
    rows: Iterable[ManifestRow | CaptionRow],
    metadata: Mapping[str, str],
    conclude: Callable[[], Mapping[str, str]] = dict,
) -> str:
    path = table_path(table, shard)
    with temporary_folder() as folder:
        file = folder / "table.parquet"
        write_table(file, with_file_metadata(schema_of(table), metadata), map(asdict, rows), conclude)
        root.upload(path, file)
    return path


def read_manifest(root: Root, shard: str) -> list[ManifestRow]:
    """The manifest of a shard.

    Raises:
        TableError: if it has not been materialized, is damaged, or of another version of this project.
        StoreError: if it cannot be read.
    """
    return list(manifest_rows(_open(root, CLIP_MANIFEST, shard)))


def read_captions(root: Root, table: str, shard: str) -> list[CaptionRow]:
    """The captions of a shard.

    Raises:
        TableError: if they have not been materialized, or the file is damaged or of a later version.
        StoreError: if it cannot be read.
    """
    return list(caption_rows(_open(root, table, shard)))


def find_captions(root: Root, table: str, shard: str) -> CaptionFile | None:
    """The published captions of a shard; None if there are none.

    Raises:
        TableError: if the file is damaged or of a later version.
        StoreError: if it cannot be read.
    """
    return CaptionFile.read(table, _open(root, table, shard)) if root.exists(table_path(table, shard)) else None


@contextmanager
def open_table(root: Root, table: str, shard: str) -> Iterator[TableFile]:
    """A shard's table, copied to this machine's disk, for as long as the block takes.

    Its rows can be read a few at a time and more than once, all from the same publication.

    Raises:
        TableError: if it has not been materialized, or the file is damaged.
        DiskFull: if there is no room for the copy.
    """
    with temporary_folder() as folder:
        copy = folder / "table.parquet"
        with _missing(root, table, shard):
            root.download(table_path(table, shard), copy)
        with _checked(root, table, shard, str(copy)) as file:
            yield file


def manifest_rows(file: TableFile) -> Iterator[ManifestRow]:
    """The rows of a manifest, read a few at a time."""
    return _rows(file, ManifestRow)


def caption_rows(file: TableFile) -> Iterator[CaptionRow]:
    """The rows of a file of captions, read a few at a time."""
    return _rows(file, CaptionRow)


def _open(root: Root, table: str, shard: str) -> TableFile:
    """A shard's table, whole in memory."""
    with _missing(root, table, shard):
        data = root.read(table_path(table, shard))
    return _checked(root, table, shard, data)


@contextmanager
def _missing(root: Root, table: str, shard: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise TableError(
            f"{root.address(table_path(table, shard))} does not exist: materialize {table} for shard {shard!r} first"
        ) from error


def _checked(root: Root, table: str, shard: str, source: str | bytes) -> TableFile:
    """A shard's table from a copy of it: a path on this machine, or its bytes."""
    place, again = root.address(table_path(table, shard)), f"materialize {table} for shard {shard!r} again"
    file = TableFile.open(source, schema_of(table), name=place, remedy=f"remove it and {again}")
    if table == CLIP_MANIFEST and file.version != SCHEMA_VERSION:
        raise TableError(f"{place} is of schema version {file.version}, and this is version {SCHEMA_VERSION}: {again}")
    return file


def _rows(file: TableFile, kind: type[R]) -> Iterator[R]:
    for record in file.records():
        try:
            row = kind(**{**record, "status": Status(record["status"])})
        except (KeyError, TypeError, ValueError) as error:
            raise TableError(f"{file.name} is damaged (a row cannot be used: {error}): {file.remedy}") from error
        yield row
