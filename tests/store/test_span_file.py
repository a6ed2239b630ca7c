import io
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.errors import UnreadableClip
from caption_assets.store.content_tag import ContentTag, etag_tag
from caption_assets.store.root import Root
from caption_assets.store.span import END_BYTES, Span
from caption_assets.store.span_file import READ_AHEAD, SpanFile

pytestmark = pytest.mark.fast

DATA = np.random.default_rng(0).integers(1, 256, 200_000, dtype=np.uint8).tobytes()
"""Bytes without zeros, so that zero-filled ranges are detected."""


def span_of(path: Path, data: bytes, offset: int = 0) -> Span:
    """A span of a new file, with other bytes before and after it."""
    path.write_bytes(b"\xff" * offset + data + b"\xff" * 100)
    return Span(f"file://{path}", offset, len(data))


def read(file: SpanFile, count: int) -> bytes:
    """Read ``count`` bytes, or up to the end of the file: one read of a raw file may return fewer."""
    data = b""
    while len(data) < count and (more := file.read(count - len(data))):
        data += more
    return data


@pytest.fixture
def file(tmp_path: Path) -> SpanFile:
    return SpanFile(span_of(tmp_path / "file", DATA, offset=512))


@given(
    st.lists(
        st.tuples(st.sampled_from(["read", "prefetch"]), st.integers(0, len(DATA) + 9), st.integers(0, len(DATA))),
        max_size=12,
    )
)
def test_cached_ranges_do_not_change_the_bytes_read(steps: list[tuple[str, int, int]]) -> None:
    with NamedTemporaryFile() as stored:
        file, plain = SpanFile(span_of(Path(stored.name), DATA, offset=7)), io.BytesIO(DATA)
        for step, start, count in steps:
            if step == "prefetch":
                file.prefetch(start, start + count)
                assert file.is_cached(start, min(start + count, len(DATA)))
            else:
                file.seek(start)
                plain.seek(start)
                assert read(file, count) == plain.read(count)


def test_prefetch_fetches_each_byte_once(file: SpanFile) -> None:
    for _ in range(2):
        file.prefetch(1000, 3000)
        file.prefetch(2000, 5000)
    assert file.read_range(1500, 4500) == DATA[1500:4500]
    assert (file.bytes_read, file.requests) == (4000, 2)


def test_zero_fill_reads_bytes_that_are_not_cached_as_zeros(file: SpanFile) -> None:
    file.prefetch(50, 60)
    file.zero_fill = True
    assert read(file, 100) == bytes(50) + DATA[50:60] + bytes(40)
    assert file.bytes_read == 10


def test_sequential_reads_fetch_large_pieces_and_do_not_cache_them(tmp_path: Path) -> None:
    size = 2 * READ_AHEAD + 1
    file = SpanFile(span_of(tmp_path / "file", bytes(size)))
    while file.read(1 << 15):
        pass
    assert (file.bytes_read, file.requests) == (size, 3)
    assert not file.is_cached(0, 1)


@pytest.mark.parametrize("size", [0, 1, END_BYTES, 2 * END_BYTES + 1, len(DATA)])
def test_tag_is_computed_while_each_byte_is_fetched_once(tmp_path: Path, size: int) -> None:
    file = SpanFile(span_of(tmp_path / "file", DATA[:size]))
    file.prefetch(0, 10)
    assert file.tag() == ContentTag(DATA[:size]).hexdigest()
    assert read(file, size) == DATA[:size]
    assert file.bytes_read == size


def test_tag_of_a_large_span_is_computed_without_caching_the_span(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caption_assets.store.span_file.MAX_CACHED_BYTES", 1000)
    monkeypatch.setattr("caption_assets.store.span_file.READ_AHEAD", 30_000)
    file = SpanFile(span_of(tmp_path / "file", DATA))
    assert file.tag() == ContentTag(DATA).hexdigest()
    assert (file.bytes_read, file.requests) == (len(DATA), 7)
    assert not file.is_cached(0, 1)


def test_content_tag_is_the_xxh3_hash_of_all_bytes() -> None:
    assert ContentTag(b"").hexdigest() == "99aa06d3014798d86001c324468d497f"  # XXH3's own test vector, seed 0
    pieces = ContentTag()
    for start in range(0, len(DATA), 777):
        pieces.update(DATA[start : start + 777])
    assert (pieces.hexdigest(), pieces.size) == (ContentTag(DATA).hexdigest(), len(DATA))


def test_tag_of_a_span_with_an_etag_is_derived_without_reading(tmp_path: Path) -> None:
    file = SpanFile(Span(f"file://{tmp_path}/unseen", 0, 10, etag='"abc"'))
    assert file.tag() == etag_tag('"abc"') == sha256(b'etag:"abc"').hexdigest()[:32]
    assert file.bytes_read == 0


def test_deleted_file_is_reported_as_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableClip, match="the file was deleted after the shard was listed") as refused:
        SpanFile(Span(f"file://{tmp_path}/gone.mp4", 0, 10)).tag()
    assert refused.value.kind == "unreadable"


def test_truncated_file_is_reported_as_unreadable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"short")
    with pytest.raises(UnreadableClip, match="returned 5 of 10 requested bytes: the file changed") as refused:
        SpanFile(Span(f"file://{tmp_path}/file", 0, 10)).tag()
    assert refused.value.kind == "unreadable"


@pytest.mark.store
def test_s3_object_is_read_in_ranges(s3_url: str) -> None:
    root = Root.open(s3_url)
    root.write("clip", DATA)
    file = SpanFile(Span(f"{s3_url}/clip", 100, len(DATA) - 200))
    assert file.read_range(1000, 2000) == DATA[1100:2100]
    file.seek(-50, io.SEEK_END)
    assert file.read() == DATA[-150:-100]
    assert file.bytes_read == 1050
