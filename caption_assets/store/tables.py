"""The tables that the assets publish: rows, schemas, reading and writing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from enum import StrEnum
from hashlib import sha256
from typing import Annotated, Any, TypeVar

import pyarrow as pa

from caption_assets.store.caption_columns import BY_STAGE, NO_COLUMNS, UPSTREAM, CaptionColumns
from caption_assets.store.disk import temporary_folder
from caption_assets.store.root import Root
from caption_assets.store.table_file import ROW_GROUP as ROW_GROUP
from caption_assets.store.table_file import SCHEMA_VERSION as SCHEMA_VERSION
from caption_assets.store.table_file import TableError as TableError
from caption_assets.store.table_file import TableFile, row_schema, with_file_metadata, write_table

CLIP_MANIFEST = "clip_manifest"
"""Name of the table of windows. Folder and asset of a table have the same name. The table of a stage's captions has the
name of the stage."""
Int64 = Annotated[int, pa.int64()]
"""An integer of 64 bits; columns of plain ``int`` have 32."""
SHARD = pa.field("shard", pa.string(), nullable=False)
"""First column of each table: the shard's key. Readers infer a type from the name of the folder, and read 00000 as 0.

Rows and checkpoints do not have it, because their path gives the shard. Files of earlier releases lack it."""
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
    """Whether a row contains a window or a caption, or an error."""

    OK = "ok"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One window of a clip, or a clip without windows: ``window_index`` is null, and ``error`` gives the reason."""

    clip_key: str
    """Name of the clip, relative to its shard."""
    window_index: int | None
    """Number of the window within its clip, from 0."""
    window_id: str
    """Hash of clip key, window index and content tag."""
    content_tag: str
    """Hash of the clip's bytes, or of the store's ETag; empty if the clip could not be read."""
    bytes: Int64
    """Size of the clip's file, in bytes."""
    status: Status
    uri: str = ""
    """File with the clip's bytes: a path relative to the source, or a URL if the file is outside the source."""
    offset: Int64 = 0
    """Offset of the clip's first byte in that file."""
    error_kind: str | None = None
    error: str | None = None
    """The reason why the clip has no window."""
    codec: str | None = None
    width: int | None = None
    """Width as displayed, in square pixels, after the rotation."""
    height: int | None = None
    """Height as displayed, in square pixels, after the rotation."""
    rotation: int | None = None
    """Rotation to apply to decoded frames, in degrees counter-clockwise: 0, 90, 180 or 270."""
    mirrored: bool | None = None
    """Whether to mirror decoded frames horizontally before the rotation."""
    pixel_format: str | None = None
    """FFmpeg's name."""
    bit_depth: int | None = None
    """Bits per sample of the first plane."""
    interlaced: bool | None = None
    """Whether pictures consist of two fields."""
    has_audio: bool | None = None
    clip_frames: int | None = None
    """Number of frames of the whole clip."""
    clip_fps: float | None = None
    """Average frames per second of the whole clip."""
    variable_fps: bool | None = None
    """Whether the frame rate of the clip varies."""
    clip_seconds: float | None = None
    """Length of the whole clip, in seconds."""
    start_frame: int | None = None
    """First frame of the window, in presentation order."""
    end_frame: int | None = None
    """One past the window's last frame."""
    start_seconds: float | None = None
    """Start of the window, in seconds from the beginning of the clip."""
    end_seconds: float | None = None
    """End of the window, in seconds from the beginning of the clip."""
    prompt: str | None = None
    """Stage-1 instruction for this clip, which replaces the run's."""
    extra: str | None = None
    """Further values from the clip's sidecar files or its row of a list, as a JSON object."""

    @property
    def key(self) -> tuple[str, int | None]:
        """The row's key in its table."""
        return self.clip_key, self.window_index


@dataclass(frozen=True, slots=True)
class PreviousText:
    """The caption that a row replaced, and what it was made with. The columns of the same names describe the fields."""

    caption: str
    flags: Sequence[str] = ()
    model: str | None = None
    revision: str | None = None
    lora: str | None = None
    lora_revision: str | None = None
    prompt_name: str | None = None
    prompt_hash: str | None = None
    sampling: Annotated[Mapping[str, float | None], SAMPLING] | None = None
    fingerprint: str | None = None
    probability: float | None = None
    """Probability of the choice; null for a stage without choices."""
    score: float | None = None
    """Probability of the choice that counts as good; null for a stage without a score."""


PREVIOUS = "previous"
"""Name of the column of previous texts."""
PREVIOUS_TEXT = pa.struct([(column.name, column.type) for column in row_schema(PreviousText)])


@dataclass(frozen=True, slots=True)
class CaptionRow:
    """One window's caption of one stage, and its provenance."""

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
    """The reason why there is no caption."""
    caption: str | None = None
    finish_reason: str | None = None
    """``stop`` if the answer is complete, ``length`` if it was cut off at the output limit."""
    flags: Sequence[str] = ()
    """Quality flags of the caption; see ``captioning.quality``."""
    reductions: Sequence[str] = ()
    """Reductions of the window's frames that a request needed: ``fewer_frames``, ``smaller_frames``."""
    model: str | None = None
    """Hub id."""
    revision: str | None = None
    lora: str | None = None
    """Hub id of the LoRA adapter; null if there is none, and in rows of older versions."""
    lora_revision: str | None = None
    prompt_name: str | None = None
    prompt_hash: str | None = None
    """Hash of this stage's instruction, before the stage-1 caption is inserted."""
    sampling: Annotated[Mapping[str, float | None], SAMPLING] | None = None
    """Temperature, top_p, repetition penalty, output limit and seed."""
    frame_indices: Sequence[int] | None = None
    """Numbers, within the clip, of the frames that the model received: without those that its processor drops. This
    column, ``frame_fps`` and the frame size are null if the processor's output does not show them."""
    frame_fps: float | None = None
    """Frames per second of those frames."""
    frames_replaced: int | None = None
    """Number of those frames that cannot be decoded, so that another picture was shown. Null in rows of versions that
    refused such windows."""
    frames_padded: int | None = None
    """Number of those frames with another aspect ratio than the clip's, which are padded with black bars."""
    frame_width: int | None = None
    """Width of these frames in pixels, after the model's processor, which may resize them."""
    frame_height: int | None = None
    """Height of these frames in pixels, after the model's processor, which may resize them."""
    prompt_tokens: int | None = None
    """Number of tokens of the prompt, including the video's."""
    cached_tokens: int | None = None
    """Number of prompt tokens from the prefix cache."""
    output_tokens: int | None = None
    attempts: int = 0
    """Number of requests for this caption, over all runs, plus the number of times that its frames could not be
    decoded."""
    engine_settings: str | None = None
    """Version of vLLM and hash of the engine's settings with which the row was made; null in rows of older versions."""
    fingerprint: str | None = None
    """Hash of everything that decides the caption's text: clip, frames, prompt, model and sampling."""
    previous: Annotated[PreviousText, PREVIOUS_TEXT] | None = None
    """The caption that this row replaced, with its flags and provenance; null if there was none, and in rows of older
    versions. It is no part of the row's identity."""
    upstream_fingerprints: Annotated[Mapping[str, str], pa.null()] | None = None
    """Fingerprints of the rows whose texts were in the prompt, by stage; None for a stage that needs no text."""
    probabilities: Annotated[Mapping[str, float], pa.null()] | None = None
    """Probability of each choice, for a stage with choices; None otherwise. Their sum is 1."""

    @property
    def key(self) -> tuple[str, int | None]:
        """The row's key in its table."""
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
        """Read all rows of a file.

        Raises:
            TableError: if the file is damaged. No row is returned then, because the other pages are not reliable.
        """
        return cls(table, list(caption_rows(file)), file.file_metadata)


R = TypeVar("R", ManifestRow, CaptionRow)


MANIFEST_SCHEMA = row_schema(ManifestRow)
"""The columns of a manifest's rows."""
MANIFEST_VERSIONS = ("2", SCHEMA_VERSION)
"""Schema versions of manifests that can be read. Captions are made from manifests of the present version only."""
CAPTION_SCHEMA = pa.schema([column for column in row_schema(CaptionRow) if column.name not in BY_STAGE])
"""The columns of the rows of all caption tables."""
FORMER_UPSTREAM = "stage1_fingerprint"
"""Column of earlier releases: the fingerprint of the stage-1 row, in tables of stage 2."""
FORMER_STAGE = "stage1_captions"
"""The stage of that row."""


def caption_schema(columns: CaptionColumns) -> pa.Schema:
    """The columns of the rows of a stage's table."""
    return pa.schema([*CAPTION_SCHEMA, *columns.schema])


def needed_stages(schema: pa.Schema) -> tuple[str, ...]:
    """The stages whose fingerprints a caption table has, from the schema of its file."""
    if UPSTREAM in schema.names:
        return tuple(field.name for field in schema.field(UPSTREAM).type)
    return (FORMER_STAGE,) if FORMER_UPSTREAM in schema.names else ()


def schema_of(table: str) -> pa.Schema:
    """The columns of a table's rows that do not depend on the stage."""
    return MANIFEST_SCHEMA if table == CLIP_MANIFEST else CAPTION_SCHEMA


def published_schema(table: str, columns: CaptionColumns = NO_COLUMNS) -> pa.Schema:
    """The columns of a table's files. ``columns`` are those of its stage."""
    return pa.schema([SHARD, *(MANIFEST_SCHEMA if table == CLIP_MANIFEST else caption_schema(columns))])


def caption_records(rows: Iterable[CaptionRow], columns: CaptionColumns) -> Iterator[dict[str, Any]]:
    """The rows of a stage's table, with the columns that derive from others."""
    for row in rows:
        record = _record(row)
        if row.previous is not None:
            record[PREVIOUS] = _record(row.previous)
        yield {**record, **columns.derived(record)}


def _record(row: ManifestRow | CaptionRow | PreviousText) -> dict[str, Any]:
    """A row's values by column. ``dataclasses.asdict`` copies all values and takes 20 times as long."""
    return {column.name: getattr(row, column.name) for column in fields(row)}


def extent(row: ManifestRow | CaptionRow) -> tuple[str, float | None, float | None]:
    """The window of a row: its id and its time range, because a clip that is cut into other windows keeps their ids."""
    return row.window_id, row.start_seconds, row.end_seconds


def window_id(clip_key: str, window_index: int | None, content_tag: str) -> str:
    """The id of a window: 24 hex digits that change with the clip's name, the window's number or the clip's content."""
    return sha256(json.dumps([clip_key, window_index, content_tag]).encode()).hexdigest()[:24]


def stored_shards(root: Root, table: str) -> frozenset[str]:
    """The shards with a table, from one listing of the table's folder. An empty file is not a table.

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
    """The path of a shard's table, relative to the root: one file of a Hive-partitioned dataset."""
    name = "manifest" if table == CLIP_MANIFEST else "captions"
    return f"{table}/shard={shard}/{name}.parquet"


def publish_manifest(
    root: Root,
    shard: str,
    rows: Iterable[ManifestRow],
    metadata: Mapping[str, str],
    final_metadata: Callable[[], Mapping[str, str]] = dict,
) -> str:
    """Write a shard's manifest as a stream, publish it atomically and return its path.

    Args:
        root: the root.
        shard: the shard's key.
        rows: the rows of all clips of the shard.
        metadata: file metadata.
        final_metadata: called after the last row for further file metadata. If it raises, nothing is published.

    Raises:
        TableError: if two rows have the same key; nothing is published then.
    """
    schema = with_file_metadata(published_schema(CLIP_MANIFEST), metadata)
    return _publish(root, CLIP_MANIFEST, shard, schema, map(_record, _unique(shard, rows)), final_metadata)


def _unique(shard: str, rows: Iterable[ManifestRow]) -> Iterator[ManifestRow]:
    seen = set()
    for row in rows:
        if row.key in seen:
            raise TableError(
                f"the manifest of shard {shard!r} contains {row.clip_key!r} twice: two clips of the shard have this "
                "name; rename one of them"
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
    columns: CaptionColumns = NO_COLUMNS,
) -> str:
    """Publish a shard's captions atomically and return their path.

    Args:
        root: the root.
        table: name of the stage's table.
        shard: the shard's key.
        rows: one row for each of ``keys``, in the same order.
        keys: the keys of the manifest's rows, in order.
        metadata: file metadata.
        columns: the columns of the stage.

    Raises:
        TableError: if the rows are not exactly those of the manifest.
    """
    expected, found = list(keys), [row.key for row in rows]
    if found != expected:
        missing, extra = set(expected) - set(found), set(found) - set(expected)
        raise TableError(
            f"{table} of shard {shard!r} has {len(found)} rows, and the manifest {len(expected)} ({len(missing)} "
            f"missing, {len(extra)} too many, or out of order): nothing was published; report this error"
        )
    schema = with_file_metadata(published_schema(table, columns), metadata)
    return _publish(root, table, shard, schema, caption_records(rows, columns))


def _publish(
    root: Root,
    table: str,
    shard: str,
    schema: pa.Schema,
    records: Iterable[Mapping[str, Any]],
    final_metadata: Callable[[], Mapping[str, str]] = dict,
) -> str:
    path = table_path(table, shard)
    with temporary_folder() as folder:
        file = folder / "table.parquet"
        write_table(file, schema, ({SHARD.name: shard, **record} for record in records), final_metadata)
        root.upload(path, file)
    return path


def read_manifest(root: Root, shard: str) -> list[ManifestRow]:
    """The manifest of a shard.

    Raises:
        TableError: if it has not been materialized, is damaged, or has another schema version.
        StoreError: if it cannot be read.
    """
    return list(manifest_rows(load_table(root, CLIP_MANIFEST, shard)))


def read_captions(root: Root, table: str, shard: str) -> list[CaptionRow]:
    """The captions of a shard.

    Raises:
        TableError: if they have not been materialized, or the file is damaged or of a later version.
        StoreError: if it cannot be read.
    """
    return list(caption_rows(load_table(root, table, shard)))


def find_captions(root: Root, table: str, shard: str) -> CaptionFile | None:
    """The published captions of a shard; None if there are none.

    Raises:
        TableError: if the file is damaged or of a later version.
        StoreError: if it cannot be read.
    """
    return CaptionFile.read(table, load_table(root, table, shard)) if root.exists(table_path(table, shard)) else None


@contextmanager
def open_table(root: Root, table: str, shard: str) -> Iterator[TableFile]:
    """A local copy of a shard's table, removed at the end of the block.

    Its rows can be read as a stream and more than once, all from the same publication.

    Raises:
        TableError: if it has not been materialized, or the file is damaged or of a version that cannot be read.
        DiskFull: if the local disk has no space for the copy.
    """
    with temporary_folder() as folder:
        copy = folder / "table.parquet"
        with _translate_missing(root, table, shard):
            root.download(table_path(table, shard), copy)
        with _validated(root, table, shard, str(copy), MANIFEST_VERSIONS) as file:
            yield file


def manifest_rows(file: TableFile) -> Iterator[ManifestRow]:
    """A stream of the rows of a manifest."""
    return _rows(file, ManifestRow)


def caption_rows(file: TableFile) -> Iterator[CaptionRow]:
    """A stream of the rows of a file of captions."""
    return _rows(file, CaptionRow, _convert_caption)


def _convert_caption(record: dict[str, Any]) -> dict[str, Any]:
    """A record with its previous text as an object, and the fingerprint of its stage-1 row in the present column."""
    if (previous := record.get(PREVIOUS)) is not None:
        record[PREVIOUS] = PreviousText(**previous)
    former = record.pop(FORMER_UPSTREAM, None)
    return record if former is None else {**record, UPSTREAM: {FORMER_STAGE: former}}


def load_table(root: Root, table: str, shard: str, manifest_versions: Sequence[str] = (SCHEMA_VERSION,)) -> TableFile:
    """A shard's table in memory. A manifest must have one of the given schema versions.

    Raises:
        TableError: if it has not been materialized, or the file is damaged or of a version that cannot be read.
        StoreError: if it cannot be read.
    """
    with _translate_missing(root, table, shard):
        data = root.read(table_path(table, shard))
    return _validated(root, table, shard, data, manifest_versions)


@contextmanager
def _translate_missing(root: Root, table: str, shard: str) -> Iterator[None]:
    """Translate a missing file into a ``TableError``."""
    try:
        yield
    except FileNotFoundError as error:
        raise TableError(
            f"{root.address(table_path(table, shard))} does not exist: materialize {table} for shard {shard!r} first"
        ) from error


def _validated(root: Root, table: str, shard: str, source: str | bytes, manifest_versions: Sequence[str]) -> TableFile:
    """A shard's table, from the path of a local copy or from its bytes."""
    place, again = root.address(table_path(table, shard)), f"materialize {table} for shard {shard!r} again"
    file = TableFile.open(source, schema_of(table), name=place, remedy=f"remove it and {again}")
    if table == CLIP_MANIFEST and file.version not in manifest_versions:
        wanted = " or ".join(manifest_versions)
        raise TableError(f"{place} has schema version {file.version}, not {wanted}: {again}")
    return file


def _rows(
    file: TableFile, kind: type[R], convert: Callable[[dict[str, Any]], dict[str, Any]] = lambda record: record
) -> Iterator[R]:
    for record in file.records(optional=(*BY_STAGE, FORMER_UPSTREAM)):
        try:
            row = kind(**{**convert(record), "status": Status(record["status"])})
        except (KeyError, TypeError, ValueError) as error:
            raise TableError(f"{file.name} is damaged (invalid row: {error}): {file.remedy}") from error
        yield row
