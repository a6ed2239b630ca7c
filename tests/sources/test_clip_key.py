from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.errors import UnreadableClip
from caption_assets.sources.clip_key import KeyAllocator, escapes_root, normalize

pytestmark = pytest.mark.fast

CHARACTERS = st.characters() | st.characters(categories=["Cs"]) | st.sampled_from("/.#2 ")
NAMES = st.text(CHARACTERS, max_size=12) | st.lists(
    st.sampled_from(["..", ".", "", "a.mp4", "a.mp4#2", "__", "\udcff"]), max_size=4
).map("/".join)
LINK = UnreadableClip("link", "a link")


@given(st.lists(st.tuples(NAMES, st.sampled_from([None, LINK])), max_size=12))
def test_allocated_keys_are_unique_relative_and_within_the_root(names: list[tuple[str, UnreadableClip | None]]) -> None:
    keys = KeyAllocator()
    allocated = [keys.allocate(name, refusal)[0] for name, refusal in names]
    assert len(set(allocated)) == len(allocated)
    for key in allocated:
        key.encode()
        assert key
        assert not PurePosixPath(key).is_absolute()
        assert {"..", ".", ""}.isdisjoint(key.split("/"))


@given(st.lists(NAMES, max_size=12))
def test_the_first_of_several_clips_with_the_same_name_is_accepted(names: list[str]) -> None:
    keys = KeyAllocator()
    kept = [normalize(name) for name in names if keys.allocate(name, None)[1] is None]
    assert sorted(kept) == sorted({normalize(name) for name in names if not escapes_root(name)})


@given(NAMES)
def test_normalize_is_idempotent(name: str) -> None:
    assert normalize(normalize(name)) == normalize(name)
    assert not escapes_root(normalize(name))


def test_a_clip_is_not_a_duplicate_of_a_refused_one() -> None:
    keys = KeyAllocator()
    assert keys.allocate("a.mp4", LINK) == ("a.mp4", LINK)
    assert keys.allocate("a.mp4", None) == ("a.mp4#2", None)


def test_a_duplicate_gets_an_unused_number() -> None:
    keys = KeyAllocator()
    assert [keys.allocate(name, None)[0] for name in ["a", "a#2", "a", "a"]] == ["a", "a#2", "a#3", "a#4"]


@pytest.mark.parametrize("name", ["/etc/x.mp4", "../x.mp4", "a/../x.mp4", "//x.mp4", ".."])
def test_an_absolute_name_or_one_with_parent_segments_is_refused(name: str) -> None:
    _, refusal = KeyAllocator().allocate(name, None)
    assert refusal is not None
    assert refusal.kind == "outside"


@pytest.mark.parametrize(
    "name", ["sp ace.mp4", "ünï.mp4", "new\nline.mp4", "100%25.mp4", "a#b?c.mp4", "..a/b...mp4", "n" * 5000]
)
def test_a_name_with_special_characters_is_its_own_key(name: str) -> None:
    assert KeyAllocator().allocate(name, None) == (name, None)


def test_a_name_that_is_not_utf_8_is_escaped() -> None:
    assert normalize(b"\xff.mp4".decode("utf-8", "surrogateescape")) == r"\udcff.mp4"
