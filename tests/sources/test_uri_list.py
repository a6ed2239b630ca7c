import json
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caption_assets.sources.clip import MAX_TEXT_BYTES, Clip
from caption_assets.sources.listing import list_clips
from caption_assets.sources.shard import ShardError, find_shard
from caption_assets.store.root import Root
from caption_assets.store.span_file import SpanFile
from tests.sources.conftest import outcomes

Rows = Sequence[dict[str, Any]]


def as_jsonl(rows: Rows) -> tuple[str, bytes]:
    return "s.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def as_parquet(rows: Rows | pa.Table) -> tuple[str, bytes]:
    sink = pa.BufferOutputStream()
    pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows)), sink)
    return "s.parquet", sink.getvalue().to_pybytes()


def listed(source: Root, name: str, data: bytes) -> list[Clip]:
    source.write(name, data)
    return list(list_clips(source, find_shard(source, "s")))


@pytest.fixture
def local(tmp_path: Path) -> Root:
    """A local source with a file in it and another beside it."""
    (tmp_path / "source" / "in").mkdir(parents=True)
    (tmp_path / "source" / "in" / "a.mp4").write_bytes(b"within")
    (tmp_path / "b.mp4").write_bytes(b"without")
    return Root.open(str(tmp_path / "source"))


@pytest.mark.parametrize("write", [as_jsonl, as_parquet])
def test_a_list_yields_its_clips_in_order_with_their_columns(source: Root, write: Any) -> None:
    for name in ("z.mp4", "in/a::b#%20?.mp4", "empty"):
        source.write(name, name.encode() if name != "empty" else b"")
    rows = [
        {"uri": source.fs.unstrip_protocol(source.full("z.mp4")), "prompt": "Count.", "n": 1},
        {"uri": "in/a::b#%20?.mp4", "prompt": None, "n": 2},
        {"uri": "./empty", "prompt": None, "n": None},
    ]
    clips = listed(source, *write(rows))
    assert [clip.video.read() for clip in clips] == [b"z.mp4", b"in/a::b#%20?.mp4", b""]
    assert [clip.metadata().prompt for clip in clips] == ["Count.", None, None]
    assert [clip.metadata().extra for clip in clips] == [{"n": 1}, {"n": 2}, {"n": None}]
    assert [clip.key for clip in clips][1:] == ["in/a::b#%20?.mp4", "empty"]
    assert not any(clip.refusal for clip in clips)


@pytest.mark.store
def test_a_local_list_may_contain_clips_on_s3_with_their_etags(local: Root, s3_url: str) -> None:
    Root.open(s3_url).write("c.mp4", b"far")
    [clip] = listed(local, *as_jsonl([{"uri": f"{s3_url}/c.mp4"}]))
    assert clip.key == f"s3:/{s3_url.removeprefix('s3://')}/c.mp4"
    assert (clip.video.read(), clip.video.etag is not None) == (b"far", True)


@pytest.mark.store
def test_an_object_has_the_same_span_in_a_list_and_in_a_folder_on_s3(s3_url: str) -> None:
    source = Root.open(s3_url)
    source.write("f/a.mp4", b"data")
    [of_list] = listed(source, *as_jsonl([{"uri": "f/a.mp4"}]))
    [of_folder] = list_clips(source, find_shard(source, "f"))
    assert of_list.video == of_folder.video


@pytest.mark.store
def test_local_uris_in_a_list_on_s3_are_refused(s3_url: str, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"secret")
    clips = listed(Root.open(s3_url), *as_jsonl([{"uri": f"file://{tmp_path}/a.mp4"}, {"uri": f"local://{tmp_path}"}]))
    assert [kind for _, kind in outcomes(clips)] == ["outside", "outside"]


@pytest.mark.store
def test_objects_that_cannot_be_looked_up_on_s3_are_refused(s3_url: str) -> None:
    source = Root.open(s3_url)
    source.write("folder/a.mp4", b"data")
    uris = ["no.mp4", "folder", "s3://no-such-bucket/a.mp4", "s3://", "folder/a.mp4?versionId=1"]
    clips = listed(source, *as_jsonl([{"uri": uri} for uri in uris]))
    assert [kind for _, kind in outcomes(clips)] == [
        "missing",
        "not_a_file",
        "unreadable",
        "not_a_file",
        "version",
    ]
    assert str(clips[2].refusal).startswith("s3://no-such-bucket/a.mp4 cannot be looked up: there is no such bucket")


@pytest.mark.fast
@pytest.mark.parametrize(
    ("uri", "key", "kind"),
    [
        ("../b.mp4", "__/b.mp4", "outside"),
        ("in/../../b.mp4", "in/__/__/b.mp4", "outside"),
        ("/etc/passwd", "etc/passwd", "outside"),
        ("file:///in/../etc/passwd", "file:/in/__/etc/passwd", "outside"),
        ("file://in/a.mp4", "file:/in/a.mp4", "outside"),
        ("local://in/a.mp4", "local:/in/a.mp4", "outside"),
        ("http://host/a.mp4", "http:/host/a.mp4", "scheme"),
        ("memory://a.mp4", "memory:/a.mp4", "scheme"),
        ("simplecache::file:///etc/passwd", "simplecache::file:/etc/passwd", "scheme"),
        ("data:video/mp4;base64,AAAA", "data:video/mp4;base64,AAAA", "scheme"),
        ("no.mp4", "no.mp4", "missing"),
        ("in", "in", "not_a_file"),
        ("n" * 300, "n" * 300, "unreadable"),
        ("a\0.mp4", "row 1", "uri"),
        ("\ud800.mp4", "row 1", "uri"),
        ("", "row 1", "uri"),
        ("./", "row 1", "uri"),
        (None, "row 1", "uri"),
        (7, "row 1", "uri"),
    ],
)
def test_invalid_unsupported_and_outside_uris_are_refused(local: Root, uri: object, key: str, kind: str) -> None:
    clips = listed(local, *as_jsonl([{"uri": uri}, {"uri": "in/a.mp4"}]))
    assert outcomes(clips) == [(key, kind), ("in/a.mp4", None)]


@pytest.mark.fast
@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIAPLANTED:planted-secret@bucket/a.mp4",
        "https://bucket.host/a.mp4?X-Amz-Credential=AKIAPLANTED%2F1&X-Amz-Signature=planted",
        "s3://bucket/a.mp4?key=AKIAPLANTED&secret=planted",
    ],
)
def test_a_uri_with_credentials_is_refused_and_not_shown(local: Root, uri: str) -> None:
    [clip] = listed(local, *as_jsonl([{"uri": uri}]))
    assert outcomes([clip]) == [("row 1", "credentials")]
    assert "planted" not in f"{clip} {clip.refusal}".lower()


@pytest.mark.fast
def test_an_absolute_file_uri_may_be_outside_a_local_source(local: Root, tmp_path: Path) -> None:
    [clip] = listed(local, *as_jsonl([{"uri": f"file://{tmp_path}/b.mp4"}]))
    assert (clip.video.read(), clip.refusal) == (b"without", None)


@pytest.mark.fast
def test_a_relative_uri_through_a_link_out_of_the_source_is_refused(local: Root, tmp_path: Path) -> None:
    (Path(local.path) / "out").symlink_to(tmp_path)
    (Path(local.path) / "stay").symlink_to("in")
    clips = listed(local, *as_jsonl([{"uri": "out/b.mp4"}, {"uri": "stay/a.mp4"}]))
    assert outcomes(clips) == [("out/b.mp4", "link"), ("stay/a.mp4", None)]


@pytest.mark.fast
def test_the_first_of_several_rows_with_the_same_uri_is_accepted(local: Root) -> None:
    rows = [{"uri": "in/a.mp4", "prompt": "First."}, {"uri": "./in/a.mp4"}, {"uri": "in/a.mp4"}]
    clips = listed(local, *as_jsonl(rows))
    assert outcomes(clips) == [("in/a.mp4", None), ("in/a.mp4#2", "duplicate"), ("in/a.mp4#3", "duplicate")]
    assert clips[0].metadata().prompt == "First."


@pytest.mark.fast
def test_columns_of_any_type_are_converted_to_json(local: Root) -> None:
    row = {"uri": "in/a.mp4", "day": date(2026, 1, 2), "ratio": float("nan"), "tags": ["x"], "deep": {"y": 1}}
    [clip] = listed(local, *as_parquet([row]))
    assert clip.metadata().extra == {"day": "2026-01-02", "ratio": None, "tags": ["x"], "deep": {"y": 1}}


TIMES = {
    "nanoseconds": (pa.array([1_700_000_000_123_456_789], pa.timestamp("ns")), "2023-11-14 22:13:20.123456789"),
    "unknown zone": (pa.array([1000], pa.timestamp("ms", "Mars/Olympus")), "1970-01-01 00:00:01.000"),
    "time of day": (pa.array([1], pa.time64("ns")), "00:00:00.000000001"),
    "duration": (pa.array([1_500_000_001], pa.duration("ns")), "0:00:01.500000"),
    "far day": (pa.array([10**8], pa.date32()), "<value out of range: 100000000>"),
}


@pytest.mark.fast
@pytest.mark.parametrize("kind", TIMES)
def test_times_that_python_cannot_represent_are_converted_to_text(
    local: Root, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)  # Arrow uses it if it is installed
    column, text = TIMES[kind]
    [clip] = listed(local, *as_parquet(pa.table({"uri": ["in/a.mp4"], "when": column})))
    assert clip.metadata().extra == {"when": text}


@pytest.mark.fast
def test_a_nested_time_that_python_cannot_represent_is_refused(
    local: Root,
) -> None:
    table = pa.table({"uri": ["in/a.mp4"], "when": pa.array([[10**8]], pa.list_(pa.date32()))})
    with pytest.raises(ShardError, match="such as a date in the year 10,000: store it as text"):
        listed(local, *as_parquet(table))


@pytest.mark.fast
def test_a_list_is_read_only_as_far_as_it_is_iterated(local: Root) -> None:
    rows = [{"uri": f"{number}.mp4"} for number in range(3000)]
    name, data = as_jsonl(rows)
    local.write(name, data + b"no JSON\n")
    clips = list_clips(local, find_shard(local, "s"))
    assert next(clips).key == "0.mp4"
    with pytest.raises(ShardError, match="line 3001"):
        list(clips)


@pytest.mark.fast
def test_blank_lines_are_skipped_but_counted(local: Root) -> None:
    data = b'\xef\xbb\xbf{"uri": "in/a.mp4"}\r\n\n  \nno JSON'
    with pytest.raises(ShardError, match=r"line 4 of the list '.*/s.jsonl' is not a JSON object .*write one, such as"):
        listed(local, "s.jsonl", data)
    assert outcomes(listed(local, "s.jsonl", data.removesuffix(b"no JSON"))) == [("in/a.mp4", None)]


@pytest.mark.fast
@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"[1]", "is a list, not a JSON object: write one"),
        (b"\xff", "is not a JSON object"),
        (b"[" * 100_000, "is not a JSON object"),
        (b'{"url": "a.mp4", "n": 1}', r"has no column 'uri' \(its columns: 'url', 'n'\): add one"),
        (b"{}", r"has no column 'uri' \(its columns: none\): add one"),
        (b" " * (MAX_TEXT_BYTES + 1), "exceeds the limit of 1048576 bytes: write one JSON object per line"),
    ],
)
def test_an_invalid_line_is_refused_with_its_number(local: Root, line: bytes, reason: str) -> None:
    with pytest.raises(ShardError, match=rf"line 2 of the list '.*/s.jsonl' {reason}"):
        listed(local, "s.jsonl", b'{"uri": "in/a.mp4"}\n' + line + b"\n")


@pytest.mark.fast
def test_a_parquet_file_without_uris_is_refused_with_its_columns(local: Root) -> None:
    with pytest.raises(
        ShardError, match=r"the list '.*/s.parquet' has no column 'uri' \(its columns: 'url', 'n'\): add"
    ):
        listed(local, *as_parquet([{"url": "a.mp4", "n": 1}]))


@pytest.mark.fast
@pytest.mark.parametrize("data", [b"", b"no Parquet", as_parquet([{"uri": "a.mp4"}])[1][:-20]])
def test_an_invalid_parquet_file_is_refused_with_its_name(local: Root, data: bytes) -> None:
    with pytest.raises(ShardError, match=r"the list '.*/s.parquet' is not valid Parquet"):
        listed(local, "s.parquet", data)


@pytest.mark.fast
def test_an_empty_list_is_refused(local: Root) -> None:
    with pytest.raises(ShardError, match="'s' has no clips: the list has no rows"):
        listed(local, "s.jsonl", b"")


@pytest.mark.store
def test_a_changed_clip_is_looked_up_again(s3_url: str) -> None:
    source = Root.open(s3_url)
    source.write("in/a.mp4", b"old")
    [before] = listed(source, *as_jsonl([{"uri": "in/a.mp4"}]))
    list(source.entries("in"))  # s3fs caches the listing
    bucket, _, prefix = source.path.partition("/")
    boto3.client("s3").put_object(Bucket=bucket, Key=f"{prefix}/in/a.mp4", Body=b"newer")
    [after] = list_clips(source, find_shard(source, "s"))
    assert (after.video.read(), SpanFile(after.video).tag() != SpanFile(before.video).tag()) == (b"newer", True)
