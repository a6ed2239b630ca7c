import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from caption_assets.sources.clip import MAX_TEXT_BYTES, Clip
from caption_assets.store.root import Root
from caption_assets.store.span import Span
from caption_assets.store.span_file import SpanFile

LONG = bytes(range(256)) * 1024


def span(source: Root, name: str, data: bytes) -> Span:
    source.write(name, data)
    return Span(source.fs.unstrip_protocol(source.full(name)), 0, len(data))


@pytest.fixture
def local(tmp_path: Path) -> Root:
    return Root.open(str(tmp_path))


@pytest.fixture
def make_clip(local: Root) -> Callable[..., Clip]:
    def make(json_file: bytes | None = None, text: bytes | None = None, columns: str | None = None) -> Clip:
        return Clip(
            "a.mp4",
            Span("", 0, 0),
            span(local, "a.json", json_file) if json_file is not None else None,
            span(local, "a.txt", text) if text is not None else None,
            columns,
        )

    return make


@pytest.mark.parametrize(
    "name", ["a#b", "a?b", "a%20b", "a*[b]{c}", "sp ace", "ünï", "a::b", "memory::b", "a::s3:b", "~a", "back\\slash"]
)
def test_a_span_reads_a_file_with_special_characters_in_its_name(source: Root, name: str) -> None:
    found = span(source, f"in/{name}.mp4", b"0123456789")
    assert found.read() == b"0123456789"
    assert found.read_range(2, 4) == b"23"


def test_reading_an_empty_range_returns_no_bytes(source: Root) -> None:
    assert span(source, "a", b"abc").read_range(1, 1) == b""
    assert span(source, "b", b"").read() == b""


def test_a_span_can_be_read_in_another_process(source: Root) -> None:
    found = span(source, "a::b.mp4", b"abc")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(found.read).result() == b"abc"
    assert len(pickle.dumps(found)) < 400


@pytest.mark.fast
def test_the_tag_of_a_whole_object_depends_on_its_etag_alone() -> None:
    nowhere = Span("s3://nowhere/a", 0, 5, etag="one")
    assert len(SpanFile(nowhere).tag()) == 32
    assert SpanFile(nowhere).tag() == SpanFile(Span("s3://elsewhere/b", 0, 5, etag="one")).tag()
    assert SpanFile(nowhere).tag() != SpanFile(Span("s3://nowhere/a", 0, 5, etag="two")).tag()


@pytest.mark.fast
@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 200_000])
def test_the_tag_depends_on_the_content_alone(local: Root, size: int) -> None:
    alone = span(local, "a", LONG[:size])
    within = span(local, "b", b"before" + LONG[:size] + b"after")
    moved = Span(within.url, 6, size)
    assert SpanFile(moved).tag() == SpanFile(alone).tag()
    assert SpanFile(within).tag() != SpanFile(alone).tag()


@pytest.mark.fast
@pytest.mark.parametrize("size", [10, 65_536, 65_537, 200_000])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.5, 0.999999])
def test_a_changed_byte_changes_the_tag(local: Root, size: int, place: float) -> None:
    changed = bytearray(LONG[:size])
    changed[int(place * size)] ^= 1
    assert SpanFile(span(local, "a", bytes(changed))).tag() != SpanFile(span(local, "b", LONG[:size])).tag()


@pytest.mark.fast
def test_a_clip_without_sidecar_files_has_no_metadata(make_clip: Callable[..., Clip]) -> None:
    assert (make_clip().metadata().prompt, make_clip().metadata().extra) == (None, {})


@pytest.mark.fast
@pytest.mark.parametrize("place", ["json_file", "columns"])
def test_metadata_separates_the_prompt_from_other_values(make_clip: Callable[..., Clip], place: str) -> None:
    values = '{"prompt": "Count.", "n": 1, "deep": {"x": [null, NaN]}}'
    clip = make_clip(**{place: values.encode() if place == "json_file" else values})
    assert clip.metadata().prompt == "Count."
    assert clip.metadata().extra == {"n": 1, "deep": {"x": [None, None]}}


@pytest.mark.fast
def test_the_text_file_is_among_the_extra_values(make_clip: Callable[..., Clip]) -> None:
    clip = make_clip(json_file=b'{"n": 1}', text="\ufeffein Hündchen".encode())
    assert clip.metadata().extra == {"n": 1, "txt": "ein Hündchen"}
    assert clip.metadata().prompt is None


@pytest.mark.fast
@pytest.mark.parametrize(
    ("json_file", "reason"),
    [
        (b"{", "is not valid JSON"),
        (b"\xff\xfe", "can't decode"),
        (b"[1]", "contains a list: write a JSON object"),
        (b'{"n": "\\ud800"}', "surrogates"),
        (b'{"n": 1e999}', "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b" " * (MAX_TEXT_BYTES + 1), "has 1048577 bytes, above the limit of 1048576: shorten it"),
    ],
)
def test_an_invalid_json_file_is_reported(make_clip: Callable[..., Clip], json_file: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=f"the clip's JSON file.* {reason}"):
        make_clip(json_file=json_file).metadata()


@pytest.mark.fast
@pytest.mark.parametrize("prompt", ["7", '" "', "[]"])
def test_an_invalid_prompt_is_reported_with_its_source(make_clip: Callable[..., Clip], prompt: str) -> None:
    with pytest.raises(ValueError, match=r"invalid prompt .* in the clip's row of the list: write"):
        make_clip(columns=f'{{"prompt": {prompt}}}').metadata()


@pytest.mark.fast
def test_a_text_file_that_is_not_utf_8_is_reported(make_clip: Callable[..., Clip]) -> None:
    with pytest.raises(ValueError, match=r"cannot read the clip's text file: .* can't decode"):
        make_clip(text=b"\xff").metadata()


@pytest.mark.fast
def test_a_deleted_json_file_is_reported(local: Root) -> None:
    gone = Span(local.fs.unstrip_protocol(local.full("gone.json")), 0, 5)
    with pytest.raises(ValueError, match="cannot read the clip's JSON file"):
        Clip("a.mp4", gone, json_file=gone).metadata()
