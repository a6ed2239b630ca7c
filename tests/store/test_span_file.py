import io
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.errors import UnreadableClip
from caption_assets.store.content_tag import PiecewiseTag, content_tag, etag_tag
from caption_assets.store.root import Root
from caption_assets.store.span import END_BYTES, Span
from caption_assets.store.span_file import READ_AHEAD, SpanFile

pytestmark = pytest.mark.fast

DATA = np.random.default_rng(0).integers(1, 256, 200_000, dtype=np.uint8).tobytes()
"""Without zeros, so that a hollow file's show."""


def span_of(path: Path, data: bytes, offset: int = 0) -> Span:
    """A span of a new file that has other bytes around it."""
    path.write_bytes(b"\xff" * offset + data + b"\xff" * 100)
    return Span(f"file://{path}", offset, len(data))


def read(file: SpanFile, count: int) -> bytes:
    """As many bytes, unless the file ends: a raw file may give fewer at a time."""
    data = b""
    while len(data) < count and (more := file.read(count - len(data))):
        data += more
    return data


@pytest.fixture
def file(tmp_path: Path) -> SpanFile:
    return SpanFile(span_of(tmp_path / "file", DATA, offset=512))


@given(
    st.lists(
        st.tuples(st.sampled_from(["read", "hold"]), st.integers(0, len(DATA) + 9), st.integers(0, len(DATA))),
        max_size=12,
    )
)
def test_it_reads_as_the_bytes_do_whatever_is_held(steps: list[tuple[str, int, int]]) -> None:
    with NamedTemporaryFile() as stored:
        file, plain = SpanFile(span_of(Path(stored.name), DATA, offset=7)), io.BytesIO(DATA)
        for what, start, count in steps:
            if what == "hold":
                file.hold(start, start + count)
                assert file.holds(start, min(start + count, len(DATA)))
            else:
                file.seek(start)
                plain.seek(start)
                assert read(file, count) == plain.read(count)


def test_only_what_is_held_is_fetched_and_only_once(file: SpanFile) -> None:
    for _ in range(2):
        file.hold(1000, 3000)
        file.hold(2000, 5000)
    assert file.read_range(1500, 4500) == DATA[1500:4500]
    assert (file.bytes_read, file.requests) == (4000, 2)


def test_a_hollow_file_gives_zeros_for_what_is_not_held(file: SpanFile) -> None:
    file.hold(50, 60)
    file.hollow = True
    assert read(file, 100) == bytes(50) + DATA[50:60] + bytes(40)
    assert file.bytes_read == 10


def test_a_long_span_is_read_in_large_pieces_that_are_not_kept(tmp_path: Path) -> None:
    size = 2 * READ_AHEAD + 1
    file = SpanFile(span_of(tmp_path / "file", bytes(size)))
    while file.read(1 << 15):
        pass
    assert (file.bytes_read, file.requests) == (size, 3)
    assert not file.holds(0, 1)


@pytest.mark.parametrize("size", [0, 1, END_BYTES, 2 * END_BYTES + 1, len(DATA)])
def test_its_tag_is_that_of_its_bytes_which_are_fetched_once(tmp_path: Path, size: int) -> None:
    file = SpanFile(span_of(tmp_path / "file", DATA[:size]))
    file.hold(0, 10)
    assert file.tag() == content_tag(DATA[:size])
    assert read(file, size) == DATA[:size]
    assert file.bytes_read == size


def test_a_long_span_is_not_kept_for_its_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caption_assets.store.span_file.HELD_BYTES", 1000)
    monkeypatch.setattr("caption_assets.store.span_file.READ_AHEAD", 30_000)
    file = SpanFile(span_of(tmp_path / "file", DATA))
    assert file.tag() == content_tag(DATA)
    assert (file.bytes_read, file.requests) == (len(DATA), 7)
    assert not file.holds(0, 1)


def test_a_tag_is_a_known_hash_of_all_bytes() -> None:
    assert content_tag(b"") == "99aa06d3014798d86001c324468d497f"  # XXH3's own test vector, seed 0
    pieces = PiecewiseTag()
    for start in range(0, len(DATA), 777):
        pieces.add(DATA[start : start + 777])
    assert (pieces.value(), pieces.size) == (content_tag(DATA), len(DATA))


def test_the_stores_own_tag_goes_before_the_bytes(tmp_path: Path) -> None:
    file = SpanFile(Span(f"file://{tmp_path}/unseen", 0, 10, etag='"abc"'))
    assert file.tag() == etag_tag('"abc"') == sha256(b'etag:"abc"').hexdigest()[:32]
    assert file.bytes_read == 0


def test_a_file_that_is_gone_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(UnreadableClip, match="cannot be read") as refused:
        SpanFile(Span(f"file://{tmp_path}/gone.mp4", 0, 10)).tag()
    assert refused.value.kind == "unreadable"


def test_a_file_that_has_shrunk_since_it_was_listed_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"short")
    with pytest.raises(UnreadableClip, match="gave 5 bytes where 10 were asked for") as refused:
        SpanFile(Span(f"file://{tmp_path}/file", 0, 10)).tag()
    assert refused.value.kind == "unreadable"


@pytest.mark.store
def test_an_object_of_s3_is_read_by_ranges(s3_url: str) -> None:
    root = Root.open(s3_url)
    root.write("clip", DATA)
    file = SpanFile(Span(f"{s3_url}/clip", 100, len(DATA) - 200))
    assert file.read_range(1000, 2000) == DATA[1100:2100]
    file.seek(-50, io.SEEK_END)
    assert file.read() == DATA[-150:-100]
    assert file.bytes_read == 1050
