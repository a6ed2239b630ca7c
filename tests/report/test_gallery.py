import json
import re
from base64 import b64decode, b64encode
from dataclasses import asdict, replace
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caption_assets.report.gallery import NOT_YET, build_gallery, write_gallery
from caption_assets.report.page import GROUP, Page, Row, render
from caption_assets.report.sides import OUTDATED
from caption_assets.store.previews import write_preview
from caption_assets.store.root import Root
from caption_assets.store.tables import CaptionRow, ManifestRow, TableError
from tests.report.windows import SHARD, broken, captioned, failed, publish, window

pytestmark = pytest.mark.fast

CAR = window("car.mp4")


class Blocks(HTMLParser):
    """What HTML makes of a page's scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[dict[str, str | None], str]] = []
        self.policy = ""
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        known = dict(attrs)
        if tag in ("script", "style"):
            self.found.append((known, ""))
        if known.get("http-equiv") == "Content-Security-Policy":
            self.policy = known["content"] or ""

    def handle_data(self, data: str) -> None:
        if self.cdata_elem:
            known, text = self.found[-1]
            self.found[-1] = known, text + data

    def data(self, kind: str) -> list[Any]:
        return [json.loads(text) for known, text in self.found if known.get("data-kind") == kind]


def row_of(manifest: ManifestRow, *captions: CaptionRow) -> Row:
    (row,) = build_gallery(SHARD, [manifest], captions[:1], captions[1:]).rows
    return row


def html_of(page: Page) -> str:
    return "".join(render(page, lambda ids: {}))


def test_what_stage_2_added_stands_apart() -> None:
    row = row_of(CAR, captioned(CAR, "A car."), captioned(CAR, "A red car."))
    assert [side.text for side in row.sides] == [("A car.",), ("A ", "red", " car.")]
    assert row.changed


def test_without_stage_2_the_page_says_so() -> None:
    row = row_of(CAR, captioned(CAR, "A car."))
    assert row.sides[1].missing == NOT_YET
    assert row.facets[0] == ["captioned"]


def test_without_captions_the_page_shows_the_windows() -> None:
    assert row_of(CAR).facets[0] == [NOT_YET]


def test_a_row_without_a_caption_shows_why() -> None:
    row = row_of(CAR, captioned(CAR, "A car."), failed(CAR))
    assert row.sides[1].missing == "engine: the engine died"
    assert row.facets[:2] == (["failed"], ["engine"])


def test_an_unreadable_clip_shows_why() -> None:
    clip = broken("torn.mp4")
    row = row_of(clip, failed(clip, "unreadable", "the index is missing"))
    assert row.facets[:2] == (["unreadable"], ["unreadable"])
    assert [side.missing for side in row.sides] == ["unreadable: the index is missing"] * 2
    assert row.place == "no window"


def test_flags_and_reductions_are_shown_and_found() -> None:
    row = row_of(CAR, captioned(CAR, "A car.", flags=("too_short",), reductions=("fewer_frames",)))
    assert row.sides[0].flags == ("too_short", "fewer_frames")
    assert row.facets[2] == ["fewer_frames", "too_short"]


def test_a_stage_2_of_another_stage_1_is_told_as_outdated() -> None:
    first, second = captioned(CAR, "A car.", fingerprint="new"), captioned(CAR, "A car.", stage1_fingerprint="old")
    assert row_of(CAR, first, second).sides[1].flags == (OUTDATED,)
    assert row_of(CAR, first, replace(second, stage1_fingerprint="new")).sides[1].flags == ()


@pytest.mark.parametrize("other", [window("van.mp4"), window("car.mp4", end_seconds=8.0)])
def test_captions_of_other_windows_are_left_out(other: ManifestRow) -> None:
    assert row_of(CAR, captioned(other, "A van.")).sides[0].missing == NOT_YET


def test_how_captions_were_made_is_told_once() -> None:
    windows = [window(f"{number}.mp4", prompt="Count the cars." if number == 2 else None) for number in range(3)]
    stage1 = [captioned(one, "A car.") for one in windows]
    page = build_gallery(SHARD, windows, stage1, [], prompts=("Describe.", None))
    assert [row.sides[0].making for row in page.rows] == [0, 0, 1]
    assert [dict(making)["Prompt"] for making in page.makings] == ["general: Describe.", "general: Count the cars."]


def test_details_name_frames_and_tokens() -> None:
    facts = dict(row_of(CAR, captioned(CAR, "A car.")).sides[0].facts)
    assert facts["Frames"] == "3: 0, 50, 99"
    assert facts["Prompt tokens"] == "2,500, of which 2,048 cached"


def test_of_many_frames_some_are_named() -> None:
    row = row_of(CAR, captioned(CAR, "A car.", frame_indices=tuple(range(768))))
    frames = dict(row.sides[0].facts)["Frames"]
    assert frames.startswith("768: 0, 1, 2, ")
    assert frames.endswith(" 37, \N{HORIZONTAL ELLIPSIS}, 767")


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_arrives_as_it_is_and_adds_no_element(key: str, caption: str) -> None:
    clip = window(key)
    page = build_gallery(SHARD, [clip], [captioned(clip, caption, flags=(key,))], [])
    plain = build_gallery(SHARD, [CAR], [captioned(CAR, "A car.", flags=("flag",))], [])
    blocks = Blocks(html_of(page))
    ((row,),) = blocks.data("rows")
    assert (row["name"], row["sides"][0]["text"]) == (key, [caption])
    assert blocks.tags == Blocks(html_of(plain)).tags


@pytest.mark.parametrize(
    "text", ["</script><script>alert(1)</script>", "<!--<script>", "<style>x", "&lt;b&gt;", "a'b\">"]
)
def test_markup_does_not_reach_the_page_as_such(text: str) -> None:
    html = html_of(build_gallery(text, [window(text)], [captioned(window(text), text, flags=(text,))], []))
    assert text not in html
    assert Blocks(html).data("rows")[0][0]["sides"][0]["text"] == [text]


def test_the_policy_names_every_script_and_style_and_no_other_source() -> None:
    clips = [window(f"{number}.mp4") for number in range(2 * GROUP)]
    blocks = Blocks(html_of(build_gallery(SHARD, clips, [], [])))
    inline = {text for known, text in blocks.found if "type" not in known}
    named = set(re.findall(r"'sha256-([^']+)'", blocks.policy))
    assert named == {b64encode(sha256(text.encode()).digest()).decode() for text in inline}
    assert "unsafe" not in blocks.policy
    assert blocks.policy.startswith("default-src 'none'; ")


def test_the_first_rows_and_their_posters_come_first() -> None:
    clips = [window(f"{number}.mp4") for number in range(2 * GROUP + 1)]
    html = "".join(render(build_gallery(SHARD, clips, [], []), lambda ids: {ids[0]: b"poster"}))
    blocks = Blocks(html)
    assert [known["data-kind"] for known, _ in blocks.found if "data-kind" in known] == [
        *("rows", "posters", "rows", "rows", "posters", "posters")
    ]
    assert [row["name"] for group in blocks.data("rows") for row in group] == [clip.clip_key for clip in clips]


def test_a_gallery_is_published_with_its_posters(tmp_path: Path) -> None:
    root, other = Root.open(str(tmp_path)), window("van.mp4")
    publish(root, [CAR, other], [captioned(CAR, "A car."), captioned(other, "A van.")])
    write_preview(root, SHARD, CAR.window_id, b"animation", b"poster")
    assert write_gallery(root, SHARD) == f"gallery/{SHARD}/index.html"
    blocks = Blocks((tmp_path / "gallery" / SHARD / "index.html").read_text())
    (posters,), (rows,) = blocks.data("posters"), blocks.data("rows")
    assert {name: b64decode(poster) for name, poster in posters.items()} == {CAR.window_id: b"poster"}
    assert [row["moves"] for row in rows] == [True, False]


def test_without_a_manifest_there_is_no_gallery(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="materialize clip_manifest for shard 'shard' first"):
        write_gallery(Root.open(str(tmp_path)), SHARD)


def test_an_empty_shard_has_a_page() -> None:
    page = build_gallery(SHARD, [], [], [])
    assert asdict(page)["rows"] == []
    assert Blocks(html_of(page)).data("rows") == []


def test_plots_of_lengths_and_failures_stand_above_the_rows(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path))
    publish(root, [CAR, window("van.mp4")], [captioned(CAR, "A car."), failed(window("van.mp4"))])
    page = root.read(write_gallery(root, SHARD)).decode()
    assert 'alt="Histogram of the number of words in a caption; mean 2.0 in stage 1"' in page
    assert 'alt="Number of rows without a caption in stage 1, by kind of error"' in page
    assert page.index("<img ") < page.index('id="rows"')


def test_there_is_no_plot_of_nothing(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path))
    publish(root, [broken("x.mp4")])
    assert "<img " not in root.read(write_gallery(root, SHARD)).decode()
