"""List shards: URIs of clips stored elsewhere, as Parquet or JSON lines."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Any, TypeGuard

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import split_protocol

from caption_assets.errors import UnreadableClip
from caption_assets.sources.clip import MAX_TEXT_BYTES, Clip, refuse_version
from caption_assets.sources.clip_key import KeyAllocator, escapes_root, normalize
from caption_assets.sources.shard import Shard, ShardError
from caption_assets.store.failure import StoreError, explain, url_has_credentials
from caption_assets.store.root import Root
from caption_assets.store.span import Span

BATCH_ROWS = 1024
"""Maximum number of rows in memory."""
PARALLEL_LOOKUPS = 16
"""Number of clips looked up in parallel. A lookup takes a store tens of milliseconds."""
READ_AHEAD_BYTES = 1 << 20
"""Size of a request when a list is read, in bytes."""
EXAMPLE = '{"uri": "s3://bucket/clip.mp4"}'
"""A valid line, for messages."""

Row = dict[str, Any]
"""Values of a row of a list, by column."""


def listed_clips(source: Root, shard: Shard) -> Iterator[Clip]:
    """The clips of a list in its order, each looked up in its store.

    Raises:
        ShardError: if the list is invalid.
    """
    keys = KeyAllocator()
    clips = (_row_clip(source, keys, number, row) for number, row in enumerate(_rows(source, shard), 1))
    with ThreadPoolExecutor(PARALLEL_LOOKUPS) as pool:
        while batch := list(islice(clips, BATCH_ROWS)):
            yield from pool.map(_look_up, batch)


def _row_clip(source: Root, keys: KeyAllocator, number: int, row: Row) -> Clip:
    """The clip of a row, before it is looked up."""
    uri = row.pop("uri")
    columns = json.dumps(row, default=str)  # values without a JSON type, such as dates, become text
    if not _is_valid_name(uri):
        return _refused_row(keys, number, columns, "uri", f"invalid uri {uri!r:.100}: use the name of a video file")
    if url_has_credentials(uri):
        reason = "the row's uri contains credentials and is not shown: use the object's URI without them"
        return _refused_row(keys, number, columns, "credentials", reason)
    url = uri if split_protocol(uri)[0] else source.fs.unstrip_protocol(source.full(normalize(uri)))
    key, refusal = keys.allocate(uri, _refuse(source, uri) or refuse_version(url))
    return Clip(key, Span(url, 0, 0, access=source.access), columns=columns, refusal=refusal)


def _refused_row(keys: KeyAllocator, number: int, columns: str, kind: str, reason: str) -> Clip:
    """The refused clip of a row without a usable URI."""
    key, refusal = keys.allocate(f"row {number}", UnreadableClip(kind, reason))
    return Clip(key, Span("", 0, 0), columns=columns, refusal=refusal)


def _is_valid_name(uri: object) -> TypeGuard[str]:
    """Whether a value can be a file name: non-empty text in valid UTF-8, without NUL."""
    if not isinstance(uri, str) or "\0" in uri or not normalize(uri):
        return False
    return uri.encode("utf-8", "ignore").decode() == uri


def _refuse(source: Root, uri: str) -> UnreadableClip | None:
    protocol, path = split_protocol(uri)
    if protocol is None:
        if not escapes_root(uri) and not source.contains(normalize(uri)):
            return UnreadableClip("link", f"{uri!r} is a link to a path outside the source: replace it with the file")
        return None
    own = source.fs.protocol
    allowed = {"s3", *([own] if isinstance(own, str) else own)}
    if protocol in ("file", "local") and (protocol not in allowed or not path.startswith("/")):
        return UnreadableClip(
            "outside",
            f"a {protocol}:// URI must be absolute and needs a local source: use the URI of a clip in the source",
        )
    if protocol not in allowed:
        return UnreadableClip("scheme", f"unsupported protocol {protocol}://: use one of {sorted(allowed)}")
    return None


def _look_up(clip: Clip) -> Clip:
    """The clip with its size and ETag, or refused if it cannot be looked up."""
    if clip.refusal:
        return clip
    try:
        info = clip.video.info()
    except FileNotFoundError:
        return replace(clip, refusal=UnreadableClip("missing", "the file does not exist"))
    except StoreError as error:
        return replace(clip, refusal=UnreadableClip("unreadable", str(error)))
    if info["type"] != "file":
        return replace(clip, refusal=UnreadableClip("not_a_file", "the uri is not that of a regular file"))
    return replace(clip, video=replace(clip.video, size=int(info["size"]), etag=info.get("ETag") or None))


def _rows(source: Root, shard: Shard) -> Iterator[Row]:
    """The rows of a list, each with a ``uri`` of any type."""
    read = _parquet_rows if shard.path.endswith(".parquet") else _json_rows
    name = source.address(shard.path)
    try:
        with source.fs.open(source.full(shard.path), "rb", block_size=READ_AHEAD_BYTES) as file:
            yield from read(file, name)
    except OSError as error:
        raise ShardError(f"cannot read the list {name!r}: {explain(error)}") from error


def _parquet_rows(file: io.RawIOBase, name: str) -> Iterator[Row]:
    try:
        table = pq.ParquetFile(file)
        _check_columns(table.schema_arrow.names, f"the list {name!r}")
        for batch in table.iter_batches(BATCH_ROWS):
            yield from _with_times_as_text(batch).to_pylist()
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ShardError(f"the list {name!r} is not valid Parquet ({error}): write it again") from error
    except (ValueError, ArithmeticError) as error:
        raise ShardError(
            f"the list {name!r} has a nested value that Python cannot represent ({error}), such as a date in the year "
            "10,000: store it as text"
        ) from error


def _with_times_as_text(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with dates and times as text in UTC, as Arrow formats them, and durations in whole microseconds.

    Python's types support neither nanoseconds nor the year 10,000.
    """
    for index, (field, column) in enumerate(zip(batch.schema, batch.columns, strict=True)):
        if pa.types.is_duration(field.type):
            batch = batch.set_column(index, field.name, column.cast(pa.duration("us"), safe=False))
        elif pa.types.is_temporal(field.type) and not pa.types.is_interval(field.type):
            zoneless = column.cast(pa.timestamp(field.type.unit)) if pa.types.is_timestamp(field.type) else column
            batch = batch.set_column(index, field.name, zoneless.cast(pa.string()))
    return batch


def _json_rows(file: io.RawIOBase, name: str) -> Iterator[Row]:
    lines = io.BufferedReader(file)  # fsspec's own readline ignores its limit
    number = 0
    while line := lines.readline(MAX_TEXT_BYTES + 1):
        number += 1
        where = f"line {number} of the list {name!r}"
        if len(line) > MAX_TEXT_BYTES:
            raise ShardError(f"{where} exceeds the limit of {MAX_TEXT_BYTES} bytes: write one JSON object per line")
        if line.isspace():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ShardError(f"{where} is not a JSON object ({error}): write one, such as {EXAMPLE}") from error
        if not isinstance(row, dict):
            raise ShardError(f"{where} is a {type(row).__name__}, not a JSON object: write one, such as {EXAMPLE}")
        _check_columns(list(row), where)
        yield row


def _check_columns(columns: list[str], where: str) -> None:
    if "uri" not in columns:
        found = ", ".join(map(repr, columns[:20])) or "none"
        raise ShardError(f"{where} has no column 'uri' (its columns: {found}): add one with the URI of each clip")
